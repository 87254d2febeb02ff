//! Small JSON objects in clear: written once, read with a limit, refused when from a newer format.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};
use crate::repository::FORMAT;
use crate::storage::{Key, Store, Stored, read_all};

/// No document is longer than this, in bytes; a longer one is not ours.
const LIMIT_BYTES: u64 = 64 << 20;

/// Stores `document` under `key`, which must be new.
///
/// # Errors
/// `AlreadyExists` if the key stands; else what the store says.
pub fn write<T: Serialize>(store: &dyn Store, key: &Key, document: &T) -> Result<Stored> {
    let mut bytes = serde_json::to_vec(document)
        .map_err(|error| Error::new(Kind::Failed, format!("encode {key}")).because(error))?;
    bytes.push(b'\n');
    store
        .put_new(key, &bytes)
        .map_err(|error| error.context(format!("write {}", store.describe(Some(key)))))
}

/// Reads the document under `key`.
///
/// # Errors
/// `NotFound` if it is surely absent; `Refused` if its `format` is newer than this program knows;
/// `Corrupt` if it is not such a document.
pub fn read<T: DeserializeOwned>(store: &dyn Store, key: &Key) -> Result<T> {
    let bytes = read_all(store, key, LIMIT_BYTES)
        .map_err(|error| error.context(format!("read {}", store.describe(Some(key)))))?;
    parse(&bytes).map_err(|error| error.context(format!("read {}", store.describe(Some(key)))))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let corrupt = |error: serde_json::Error| {
        Error::new(Kind::Corrupt, "the content is not a document of this format").because(error)
    };
    // The version comes first: a newer document may lack fields that this one requires.
    let version: Version = serde_json::from_slice(bytes).map_err(corrupt)?;
    if version.format > FORMAT {
        return Err(Error::new(
            Kind::Refused,
            format!(
                "it has format {}, and this program reads up to format {FORMAT}",
                version.format
            ),
        )
        .hint("install a newer pgkeep on this host"));
    }
    serde_json::from_slice(bytes).map_err(corrupt)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_newer_format_is_refused_and_rubbish_is_corrupt() {
        #[derive(serde::Deserialize, Debug)]
        struct Document {
            #[allow(dead_code)]
            needed: u32,
        }
        assert_eq!(parse::<Document>(br#"{"format":2}"#).unwrap_err().kind(), Kind::Refused);
        assert_eq!(parse::<Document>(br#"{"format":1}"#).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(parse::<Document>(b"").unwrap_err().kind(), Kind::Corrupt);
        assert!(parse::<Document>(br#"{"format":1,"needed":3,"unknown":[]}"#).is_ok());
    }
}
