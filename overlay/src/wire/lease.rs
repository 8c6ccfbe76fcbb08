//! A subnet lease as the store holds it: the key `<prefix>/subnets/<a.b.c.d>-<len>` and its JSON value.
//!
//! The value is flannel v0.10's, byte for byte (compact, keys in this order, lower-case MAC):
//!
//! ```text
//! {"PublicIP":"10.99.0.2","BackendType":"vxlan","BackendData":{"VtepMAC":"62:3b:27:aa:b8:86"}}
//! ```
//!
//! Newer flannels add `PublicIPv6`, `BackendV6Data` and `VNI`; those are read past. Departure from flannel: a key is
//! a lease only if the whole name is one and has no host bits. flannel searches for the pattern anywhere in the name,
//! so that `x172.17.1.0-24y` counts as a lease there.

use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::Value;

use super::gojson;
pub use super::gojson::JsonError;
use crate::types::{Subnet, TypeError, VtepMac};

/// How long a lease lives without renewal, in seconds (flannel's 24 hours).
pub const TTL_S: u64 = 86_400;

/// The `BackendType` of a VXLAN lease.
pub const VXLAN: &str = "vxlan";

/// The last part of a subnet's key: `172.17.71.0-24`.
pub fn subnet_key(subnet: Subnet) -> String {
    format!("{}-{}", subnet.base(), subnet.len())
}

/// The full key of a subnet's lease below flannel's key prefix.
pub fn lease_key(prefix: &str, subnet: Subnet) -> String {
    format!("{}/{}", leases_dir(prefix), subnet_key(subnet))
}

/// The directory that holds all leases below flannel's key prefix.
pub fn leases_dir(prefix: &str) -> String {
    format!("{}/subnets", prefix.trim_end_matches('/'))
}

/// The subnet a key names; `key` may be a full key or its last part. `None` when it names no subnet.
pub fn parse_subnet_key(key: &str) -> Option<Subnet> {
    let name = key.rsplit('/').next()?;
    let (base, len) = name.split_once('-')?;
    let canonical = Subnet::new(base.parse().ok()?, len.parse().ok()?)?;
    (subnet_key(canonical) == name).then_some(canonical)
}

/// The value of a lease: who holds the subnet and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseValue {
    /// The holder's address on the underlay.
    pub public_ip: Ipv4Addr,
    /// `vxlan`, `host-gw`...; empty when the value does not say.
    pub backend_type: String,
    /// Backend data as found; for VXLAN an object with `VtepMAC`.
    pub backend_data: Option<Value>,
}

/// Why a lease's value is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseValueError {
    /// Not the JSON it should be.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// No `PublicIP`.
    #[error("PublicIP is missing")]
    NoPublicIp,
    /// VXLAN data without a usable `VtepMAC`.
    #[error("BackendData of a vxlan lease: {0}")]
    VtepMac(String),
    /// VXLAN data with an address nobody can have.
    #[error("BackendData of a vxlan lease: VtepMAC: {0}")]
    Type(#[from] TypeError),
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<&'a Value>,
}

impl LeaseValue {
    /// The value of a VXLAN lease.
    pub fn vxlan(public_ip: Ipv4Addr, mac: VtepMac) -> Self {
        let backend_data = Some(serde_json::json!({ "VtepMAC": mac.to_string() }));
        Self { public_ip, backend_type: VXLAN.to_owned(), backend_data }
    }

    /// Parses the value of a lease key, tolerating unknown fields.
    ///
    /// # Errors
    /// When it is not an object, or `PublicIP` is missing or not an IPv4 address.
    pub fn parse(text: &str) -> Result<Self, LeaseValueError> {
        let map = gojson::object(text)?;
        Ok(Self {
            public_ip: gojson::ipv4(&map, "PublicIP")?.ok_or(LeaseValueError::NoPublicIp)?,
            backend_type: gojson::string(&map, "BackendType")?.unwrap_or_default(),
            backend_data: gojson::field(&map, "BackendData").cloned(),
        })
    }

    /// The JSON to store.
    pub fn to_json(&self) -> String {
        let written = Written {
            public_ip: self.public_ip,
            backend_type: &self.backend_type,
            backend_data: self.backend_data.as_ref(),
        };
        serde_json::to_string(&written).expect("strings and JSON values always serialise")
    }

    /// Whether this is a VXLAN lease.
    pub fn is_vxlan(&self) -> bool {
        self.backend_type == VXLAN
    }

    /// The VTEP address of a VXLAN lease.
    ///
    /// # Errors
    /// When the backend data holds none, or one that is not a unicast MAC address.
    pub fn vtep_mac(&self) -> Result<VtepMac, LeaseValueError> {
        let bad = |why: &str| LeaseValueError::VtepMac(why.to_owned());
        let Some(Value::Object(map)) = &self.backend_data else { return Err(bad("is not an object")) };
        let mac = gojson::string(map, "VtepMAC")?.ok_or_else(|| bad("has no VtepMAC"))?;
        Ok(mac.parse::<VtepMac>()?)
    }
}

/// A lease as read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnet, from the key.
    pub subnet: Subnet,
    /// The holder, from the value.
    pub value: LeaseValue,
    /// Seconds left when it was read; `None` for a reservation, which never expires.
    pub ttl_s: Option<u64>,
    /// The store's index of the last change.
    pub modified_index: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V010: &str =
        r#"{"PublicIP":"10.99.0.2","BackendType":"vxlan","BackendData":{"VtepMAC":"62:3b:27:aa:b8:86"}}"#;

    #[test]
    fn the_bytes_are_flannels() {
        let value = LeaseValue::vxlan("10.99.0.2".parse().unwrap(), "62:3B:27:AA:B8:86".parse().unwrap());
        assert_eq!(value.to_json(), V010);
        assert_eq!(LeaseValue::parse(V010), Ok(value));
        let bare = LeaseValue::parse(r#"{"PublicIP":"10.99.0.2"}"#).unwrap();
        assert_eq!(bare.to_json(), r#"{"PublicIP":"10.99.0.2"}"#);
        let host_gw = LeaseValue::parse(r#"{"PublicIP":"10.99.0.2","BackendType":"host-gw"}"#).unwrap();
        assert_eq!(host_gw.to_json(), r#"{"PublicIP":"10.99.0.2","BackendType":"host-gw"}"#);
    }

    #[test]
    fn newer_and_oddly_spelled_values_are_read() {
        let newer = r#"{"PublicIP":"10.99.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"62:3b:27:aa:b8:86"},"BackendV6Data":{}}"#;
        let lower =
            r#"{"publicip":"10.99.0.2","backendtype":"vxlan","BACKENDDATA":{"vtepmac":"62:3b:27:aa:b8:86"}}"#;
        for text in [newer, lower] {
            let value = LeaseValue::parse(text).unwrap();
            assert!(value.is_vxlan());
            assert_eq!(value.vtep_mac().unwrap().to_string(), "62:3b:27:aa:b8:86");
        }
    }

    #[test]
    fn useless_values_say_why() {
        for (text, why) in [
            ("", "invalid JSON"),
            ("[]", "expected a JSON object, found an array"),
            ("{}", "PublicIP is missing"),
            (r#"{"PublicIP":"fe80::1"}"#, "PublicIP: expected an IPv4 address"),
            (r#"{"PublicIP":7}"#, "PublicIP: expected an IPv4 address"),
        ] {
            let error = LeaseValue::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        for (data, why) in [
            ("null", "is not an object"),
            ("{}", "has no VtepMAC"),
            (r#"{"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#, "not a unicast"),
        ] {
            let text = format!(r#"{{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{data}}}"#);
            let error = LeaseValue::parse(&text).unwrap().vtep_mac().unwrap_err().to_string();
            assert!(error.contains(why), "{data}: {error}");
        }
    }

    #[test]
    fn only_whole_canonical_names_are_leases() {
        let lease = "/coreos.com/network/subnets/172.17.71.0-24";
        assert_eq!(parse_subnet_key(lease), Some("172.17.71.0/24".parse().unwrap()));
        for odd in [
            "README",
            "172.17.71.0-33",
            "172.17.71.5-24",
            "x172.17.71.0-24",
            "172.17.71.0-024",
            "172.17.71.0-+24",
            "",
        ] {
            assert_eq!(parse_subnet_key(odd), None, "{odd}");
        }
    }

    proptest! {
        #[test]
        fn keys_round_trip(a: u32, len in 0u8..=32) {
            let subnet = Subnet::containing(a.into(), len).unwrap();
            prop_assert_eq!(parse_subnet_key(&lease_key("/coreos.com/network/", subnet)), Some(subnet));
        }

        #[test]
        fn values_round_trip(ip: u32, mac: [u8; 6]) {
            let value = LeaseValue::vxlan(ip.into(), VtepMac::locally_administered(mac));
            prop_assert_eq!(LeaseValue::parse(&value.to_json()), Ok(value));
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,60}") {
            let _ = (parse_subnet_key(&text), LeaseValue::parse(&text).map(|v| v.vtep_mac()));
        }
    }
}
