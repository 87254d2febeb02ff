//! The backup that an incremental one leans on: which one, what it holds, and where.

pub mod choose;
pub mod cut;
pub mod lean;
pub mod used;
