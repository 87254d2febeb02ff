//! .

pub mod walmap;
pub mod walscan;
