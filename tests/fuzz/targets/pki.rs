//! Any bytes through what `cli pki` reads: see `properties` for what must hold.

#![no_main]

#[path = "../../../pki/tests/parsers/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::pki(data));
