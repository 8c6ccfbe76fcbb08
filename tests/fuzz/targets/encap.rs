//! Any bytes through `overlay::datapath::encap`: see `properties::encap` for what must hold.

#![no_main]

#[path = "../../../overlay/tests/packets/mod.rs"]
mod packets;
#[path = "../../../overlay/tests/packets/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::encap(data));
