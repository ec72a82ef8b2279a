//! Descriptors in, bytes out: the only crate with `unsafe`.

pub mod tap;
