//! What the pgkeep tools share, in layers; imports point down only (`tests/layers.rs` checks it).
//!
//! | layer | modules |
//! |---|---|
//! | 3 | [`config`], [`leadership`], [`open`], [`retention`], [`scratch`] |
//! | 2 | [`repository`]: what is on disk, as `FORMAT.md` specifies it; [`erasure`] |
//! | 1 | [`postgres`], [`codec`], [`storage`], [`job`], [`check`] |
//! | 0 | [`error`], [`exit`], [`journal`], [`units`], [`time`], [`digest`], [`durable`], [`lock`], [`secret`], [`leftovers`], [`retry`], [`process`], [`interrupt`], [`progress`], [`sorter`] |

// Layer 0: small, no domain words.
pub mod digest;
pub mod durable;
pub mod error;
pub mod exit;
pub mod interrupt;
pub mod journal;
pub mod leftovers;
pub mod lock;
pub mod process;
pub mod progress;
pub mod retry;
pub mod secret;
pub mod sorter;
pub mod time;
pub mod units;

// Layer 1: bytes, transport, PostgreSQL, what a job leaves behind.
pub mod check;
pub mod codec;
pub mod job;
pub mod postgres;
pub mod storage;

// Layer 2: the on-disk promise, and what it asks of servers.
pub mod erasure;
pub mod repository;

// Layer 3: configuration, what it keeps, which server works, the one place that opens repositories, and scratch servers.
pub mod config;
pub mod leadership;
pub mod open;
pub mod retention;
pub mod scratch;
