//! What overlayd reads and writes, as pure codecs: lease JSON and keys, the network configuration, `subnet.env`.
//!
//! The formats are flannel's, byte for byte where bytes are seen by others; each module names its departures.

pub mod env;
mod gojson;
pub mod handover;
pub mod lease;
pub mod netconf;
pub mod vxlan;
