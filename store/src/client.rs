//! The v2 client.
