//! Any bytes through what a member of the store reads: see `properties` for what must hold.

#![no_main]

#[path = "../../../store/tests/parsers/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::store(data));
