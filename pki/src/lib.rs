//! A certificate authority that reads cfssl's files and answers in cfssl's envelope.
//!
//! The flow of one certificate: [`request`] turns a CSR JSON into checked values, [`profile`] does the same
//! for `ca-config.json`, [`key`] makes or reads a private key, [`issue`] combines them with an issuer, a time
//! and a serial number into PEM, [`api`] wraps the PEM as cfssl prints it and [`disk`] puts it into files.
//! [`cluster`] is the same for a whole cluster at once, [`inspect`] reads certificates back.
//!
//! Everything but [`disk`] is free of files and clocks: the caller passes the bytes, the name to blame in an
//! error, and the time. Only [`key::PrivateKey::generate`] and [`serial::Serial::random`] draw random
//! numbers, from the operating system.

pub mod api;
pub mod cluster;
mod der;
pub mod disk;
pub mod duration;
pub mod host;
mod input;
pub mod inspect;
pub mod issue;
pub mod key;
pub mod profile;
pub mod request;
pub mod serial;
pub mod usage;
mod verify;

pub use input::{InputError, Problem};
