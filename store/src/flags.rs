//! Go flag syntax.
