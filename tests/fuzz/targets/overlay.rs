//! Any bytes through what `overlayd` reads: see `properties` for what must hold.

#![no_main]

#[path = "../../../overlay/tests/parsers/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::overlay(data));
