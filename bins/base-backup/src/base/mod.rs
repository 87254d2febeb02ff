//! The backup that an incremental one leans on: which one, what it holds, and where.

pub mod chain;
pub mod choose;
pub mod cut;
pub mod digests;
pub mod lean;
pub mod used;
