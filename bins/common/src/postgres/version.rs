//! The major versions of PostgreSQL that are supported, and the numbers that give each away.

use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A supported major version. In JSON its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum Major {
    /// PostgreSQL 13.
    V13,
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl Major {
    /// All of them, oldest first.
    pub const ALL: [Major; 6] = [Major::V13, Major::V14, Major::V15, Major::V16, Major::V17, Major::V18];

    /// The major version `number`, like 15.
    ///
    /// # Errors
    /// `Config` if it is not supported.
    pub fn new(number: u32) -> Result<Major> {
        Self::find(|major| major.number() == number)
            .ok_or_else(|| unsupported(format!("PostgreSQL {number} is not supported")))
    }

    /// The major version of a server that reports this `server_version_num`, like 150018.
    ///
    /// # Errors
    /// `Config` if it is not supported.
    pub fn from_version_num(version_num: u32) -> Result<Major> {
        Self::new(version_num / 10_000)
    }

    /// The major version that writes this magic number into WAL pages (`XLOG_PAGE_MAGIC`).
    pub fn from_wal_magic(magic: u16) -> Option<Major> {
        Self::find(|major| major.wal_magic() == magic)
    }

    /// The major version that has these numbers in pg_control.
    pub fn from_control(control_version: u32, catalog_version: u32) -> Option<Major> {
        Self::find(|major| major.control_version() == control_version && major.catalog_version() == catalog_version)
    }

    /// Its number, like 15.
    pub fn number(self) -> u32 {
        match self {
            Major::V13 => 13,
            Major::V14 => 14,
            Major::V15 => 15,
            Major::V16 => 16,
            Major::V17 => 17,
            Major::V18 => 18,
        }
    }

    /// `XLOG_PAGE_MAGIC` (`src/include/access/xlog_internal.h`).
    pub fn wal_magic(self) -> u16 {
        match self {
            Major::V13 => 0xD106,
            Major::V14 => 0xD10D,
            Major::V15 => 0xD110,
            Major::V16 => 0xD113,
            Major::V17 => 0xD116,
            Major::V18 => 0xD118,
        }
    }

    /// `PG_CONTROL_VERSION` (`src/include/catalog/pg_control.h`).
    pub fn control_version(self) -> u32 {
        match self {
            Major::V13 | Major::V14 | Major::V15 | Major::V16 => 1300,
            Major::V17 => 1700,
            Major::V18 => 1800,
        }
    }

    /// `CATALOG_VERSION_NO` (`src/include/catalog/catversion.h`).
    pub fn catalog_version(self) -> u32 {
        match self {
            Major::V13 => 202_007_201,
            Major::V14 => 202_107_181,
            Major::V15 => 202_209_061,
            Major::V16 => 202_307_071,
            Major::V17 => 202_406_281,
            Major::V18 => 202_506_291,
        }
    }

    /// The directory that a cluster of this version uses in a tablespace, like `PG_15_202209061`.
    pub fn tablespace_directory(self) -> String {
        format!("PG_{self}_{}", self.catalog_version())
    }

    fn find(wanted: impl Fn(Major) -> bool) -> Option<Major> {
        Self::ALL.into_iter().find(|major| wanted(*major))
    }
}

/// The error for a server or a file of a version that is not known.
pub(super) fn unsupported(message: String) -> Error {
    Error::new(Kind::Config, message).hint("versions 13 to 18 are supported")
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl TryFrom<u32> for Major {
    type Error = Error;
    fn try_from(number: u32) -> Result<Self> {
        Self::new(number)
    }
}

impl From<Major> for u32 {
    fn from(major: Major) -> u32 {
        major.number()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn every_number_leads_back_to_its_version() {
        for major in Major::ALL {
            assert_eq!(Major::new(major.number()).unwrap(), major);
            assert_eq!(Major::from_wal_magic(major.wal_magic()), Some(major));
            assert_eq!(
                Major::from_control(major.control_version(), major.catalog_version()),
                Some(major)
            );
        }
        assert_eq!(Major::from_version_num(150_018).unwrap(), Major::V15);
        assert_eq!(Major::V15.tablespace_directory(), "PG_15_202209061");
    }

    #[test]
    fn another_version_is_a_configuration_error() {
        for number in [9, 12, 19] {
            assert_eq!(Major::new(number).unwrap_err().kind(), Kind::Config);
        }
        assert_eq!(Major::from_wal_magic(0), None);
    }
}
