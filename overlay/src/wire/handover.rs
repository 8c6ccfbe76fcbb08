//! What the rust data path leaves for the next process, as JSON in a file beside `subnet.env`: enough to carry packets
//! from the first moment, before the store has said anything.
//!
//! With a kernel device that knowledge is in the kernel (FDB entries) and forwarding goes on while no daemon runs. Here
//! packets wait for a reader; the file makes that a moment even if the store does not answer. It is overtaken by the
//! first listing of the leases, and worth nothing once the device is gone.
//!
//! ```json
//! {"version":1,"device":"flannel.1","vni":1,"port":8472,"local":"10.99.0.2","mac":"62:3b:27:aa:b8:86","mtu":1450,
//!  "subnet":"172.17.71.0/24","peers":[{"subnet":"172.17.9.0/24","mac":"62:3b:27:aa:b8:87","public_ip":"10.99.0.3"}]}
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::datapath::Peer;
use crate::types::{Mtu, Subnet, TypeError, Vni, VtepMac};

const VERSION: u32 = 1;

/// A data path as it was last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The device.
    pub device: String,
    /// The network.
    pub vni: Vni,
    /// UDP port, ours and the peers'.
    pub port: u16,
    /// Our address on the underlay.
    pub local: Ipv4Addr,
    /// The device's hardware address.
    pub mac: VtepMac,
    /// The device's MTU.
    pub mtu: Mtu,
    /// Our subnet.
    pub subnet: Subnet,
    /// The other hosts.
    pub peers: BTreeMap<Subnet, Peer>,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// Not the JSON it should be.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Another release wrote it.
    #[error("version {0}, not {VERSION}")]
    Version(u32),
    /// A value that cannot be.
    #[error(transparent)]
    Value(#[from] TypeError),
}

#[derive(Serialize, Deserialize)]
struct Form {
    version: u32,
    device: String,
    vni: u64,
    port: u16,
    local: Ipv4Addr,
    mac: String,
    mtu: u64,
    subnet: Subnet,
    peers: Vec<PeerForm>,
}

#[derive(Serialize, Deserialize)]
struct PeerForm {
    subnet: Subnet,
    mac: String,
    public_ip: Ipv4Addr,
}

impl Handover {
    /// Reads the file's text.
    ///
    /// # Errors
    /// When another release wrote it, or something else did.
    pub fn parse(text: &str) -> Result<Self, HandoverError> {
        let form: Form = serde_json::from_str(text)?;
        if form.version != VERSION {
            return Err(HandoverError::Version(form.version));
        }
        let peer = |p: PeerForm| Ok((p.subnet, Peer { mac: p.mac.parse()?, public_ip: p.public_ip }));
        Ok(Self {
            device: form.device,
            vni: form.vni.try_into()?,
            port: form.port,
            local: form.local,
            mac: form.mac.parse()?,
            mtu: form.mtu.try_into()?,
            subnet: form.subnet,
            peers: form.peers.into_iter().map(peer).collect::<Result<_, TypeError>>()?,
        })
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let peer = |(subnet, peer): (&Subnet, &Peer)| PeerForm {
            subnet: *subnet,
            mac: peer.mac.to_string(),
            public_ip: peer.public_ip,
        };
        let form = Form {
            version: VERSION,
            device: self.device.clone(),
            vni: self.vni.get().into(),
            port: self.port,
            local: self.local,
            mac: self.mac.to_string(),
            mtu: self.mtu.get().into(),
            subnet: self.subnet,
            peers: self.peers.iter().map(peer).collect(),
        };
        serde_json::to_string(&form).expect("strings and numbers only")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"{"version":1,"device":"flannel.1","vni":1,"port":8472,"local":"10.99.0.2","mac":"62:3b:27:aa:b8:86","mtu":1450,"subnet":"172.17.71.0/24","peers":[{"subnet":"172.17.9.0/24","mac":"62:3b:27:aa:b8:87","public_ip":"10.99.0.3"}]}"#;

    #[test]
    fn the_form_is_as_documented() {
        let handover = Handover::parse(TEXT).unwrap();
        assert_eq!((handover.mtu.get(), handover.peers.len()), (1450, 1));
        assert_eq!(handover.render(), TEXT);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"vni\":1", "\"vni\":16777216"),
            ("\"mtu\":1450", "\"mtu\":67"),
            ("62:3b:27:aa:b8:87", "63:3b:27:aa:b8:87"),
            ("172.17.9.0/24", "172.17.9.0"),
            ("}]}", "}"),
        ] {
            assert!(TEXT.contains(from) && Handover::parse(&TEXT.replace(from, to)).is_err(), "{to}");
        }
        assert!(Handover::parse("").is_err());
    }

    proptest! {
        #[test]
        fn handovers_round_trip(
            vni in 0u64..1 << 24, port: u16, local: u32, mac: [u8; 6], mtu in 68u64..65536,
            peers in prop::collection::btree_map(0u8.., (any::<[u8; 6]>(), any::<u32>()), 0..9),
        ) {
            let subnet = |n: u8| Subnet::new([10, 3, n, 0].into(), 24).unwrap();
            let peer = |(mac, ip): (_, u32)| Peer { mac: VtepMac::locally_administered(mac), public_ip: ip.into() };
            let handover = Handover {
                device: format!("flannel.{vni}"),
                vni: vni.try_into().unwrap(),
                port,
                local: local.into(),
                mac: VtepMac::locally_administered(mac),
                mtu: mtu.try_into().unwrap(),
                subnet: subnet(7),
                peers: peers.into_iter().map(|(n, p)| (subnet(n), peer(p))).collect(),
            };
            prop_assert_eq!(Handover::parse(&handover.render()).unwrap(), handover);
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,80}") {
            let _ = Handover::parse(&text);
        }
    }
}
