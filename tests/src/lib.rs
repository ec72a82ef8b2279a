//! The netlab harness.
