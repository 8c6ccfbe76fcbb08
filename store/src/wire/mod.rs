//! What travels and what is stored, byte for byte: the v2 HTTP API, replicated commands, peer frames.

pub mod command;
pub mod json;
pub mod peer;
pub mod raft_message;
pub mod transfer;
pub mod v2;
pub mod v2_body;
pub mod v2_request;
