//! Small JSON objects in clear: written once, read with a limit, refused when from a newer format.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::{Sha256Digest, hex};
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

/// What stands between a sealed document and its own digest.
const SEAL: &[u8] = b",\"self_sha256\":\"";

/// Stores `document` under `key`, which must be new, with the SHA-256 of all that stands before as its last field.
///
/// # Errors
/// As [`write`].
pub fn write_sealed<T: Serialize>(store: &dyn Store, key: &Key, document: &T) -> Result<Stored> {
    let bytes = serde_json::to_vec(document)
        .map_err(|error| Error::new(Kind::Failed, format!("encode {key}")).because(error))?;
    store
        .put_new(key, &seal(bytes))
        .map_err(|error| error.context(format!("write {}", store.describe(Some(key)))))
}

/// Closes a JSON object with its digest.
fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.pop();
    let digest = Sha256Digest::of(&bytes);
    bytes.extend_from_slice(SEAL);
    bytes.extend_from_slice(hex(digest.as_bytes()).as_bytes());
    bytes.extend_from_slice(b"\"}\n");
    bytes
}

/// Reads a document that was stored with its own digest.
///
/// # Errors
/// As [`read`]; `Corrupt` if the digest is missing or wrong.
pub fn read_sealed<T: DeserializeOwned>(store: &dyn Store, key: &Key) -> Result<T> {
    let bytes = read_all(store, key, LIMIT_BYTES)
        .map_err(|error| error.context(format!("read {}", store.describe(Some(key)))))?;
    // A newer format may be sealed in another way: it is refused for what it is.
    parse(&bytes)
        .and_then(|document| check_seal(&bytes).map(|()| document))
        .map_err(|error| error.context(format!("read {}", store.describe(Some(key)))))
}

fn check_seal(bytes: &[u8]) -> Result<()> {
    let damaged = |why: &str| Error::new(Kind::Corrupt, format!("the document is damaged: {why}"));
    let at = bytes
        .windows(SEAL.len())
        .rposition(|window| window == SEAL)
        .ok_or_else(|| damaged("it does not end with its own digest"))?;
    let (content, rest) = bytes.split_at(at);
    let stated = rest
        .strip_prefix(SEAL)
        .and_then(|rest| rest.strip_suffix(b"\"}\n"))
        .ok_or_else(|| damaged("it does not end with its own digest"))?;
    let computed = hex(Sha256Digest::of(content).as_bytes());
    if stated == computed.as_bytes() {
        return Ok(());
    }
    Err(damaged(&format!(
        "its SHA-256 is {computed}, and it says {}",
        String::from_utf8_lossy(stated)
    )))
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

    #[test]
    fn no_changed_byte_of_a_sealed_document_is_taken() {
        let sealed = seal(br#"{"format":1,"needed":3}"#.to_vec());
        check_seal(&sealed).unwrap();
        assert!(sealed.ends_with(b"\"}\n"));
        for at in 0..sealed.len() {
            for bit in [0x01, 0x20] {
                let mut changed = sealed.clone();
                changed[at] ^= bit;
                assert_eq!(check_seal(&changed).unwrap_err().kind(), Kind::Corrupt, "{at}");
            }
            assert!(check_seal(&sealed[..at]).is_err(), "{at}");
        }
        assert!(check_seal(b"{\"format\":1}\n").is_err());
    }

    #[test]
    fn the_digest_can_be_checked_with_the_command_of_the_specification() {
        let specified = include_str!("../../FORMAT.md");
        let command = specified
            .lines()
            .find(|line| line.starts_with("sed 's/,\"self_sha256\""))
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let sealed = seal(br#"{"format":1,"note":"it's \u00e4, \"quoted\""}"#.to_vec());
        std::fs::write(dir.path().join("backup.json"), &sealed).unwrap();
        let mut shell = std::process::Command::new("sh");
        let output = shell.args(["-c", command]).current_dir(dir.path()).output().unwrap();
        let digest = String::from_utf8(output.stdout).unwrap();
        let digest = digest.split(' ').next().unwrap();
        assert!(
            digest.len() == 64 && String::from_utf8(sealed).unwrap().contains(digest),
            "{digest}"
        );
    }

    #[test]
    fn a_sealed_document_reads_back_and_a_newer_one_is_refused() {
        let store = crate::storage::memory::MemoryStore::new();
        let key = |name| Key::parse(name).unwrap();
        let document = serde_json::json!({"format": 1, "needed": [1]});
        write_sealed(&store, &key("a"), &document).unwrap();
        let read: serde_json::Value = read_sealed(&store, &key("a")).unwrap();
        assert_eq!(read["needed"], document["needed"]);
        write(&store, &key("b"), &document).unwrap();
        let read = |name| read_sealed::<serde_json::Value>(&store, &key(name)).unwrap_err().kind();
        assert_eq!(read("b"), Kind::Corrupt);
        write(&store, &key("c"), &serde_json::json!({"format": 2})).unwrap();
        assert_eq!(read("c"), Kind::Refused);
    }
}
