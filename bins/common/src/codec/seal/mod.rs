//! Encryption: age with X25519 recipients, or none.
//!
//! [`Sealing`] writes for recipients, [`Opening`] reads with identities. A sealed object is an ordinary age
//! file, opened by `age -d -i identity`; where it carries a [`Descriptor`], that is one more stanza of
//! its header. Keys come from the caller, never from what is read.

pub(super) mod header;
mod opening;
mod seekable;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashSet;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use age::stream::StreamWriter;
use age::x25519;
use age_core::format::{FileKey, Stanza};

use super::descriptor::Descriptor;
use crate::digest::hex;
use crate::error::{Context, Error, Kind, Result};

pub use opening::{OpenReader, Opening, generate_identity};
pub use seekable::SeekableReader;

/// Plain bytes in a chunk of an age file.
const CHUNK_BYTES: u64 = 64 * 1024;
/// What encryption adds to each chunk.
const TAG_BYTES: u64 = 16;
/// The random number between an age file's header and its chunks.
const NONCE_BYTES: u64 = 16;
/// As many recipients as keep a header below what is read again.
const MAX_RECIPIENTS: usize = 100;

/// The size of an age file around `payload` bytes.
pub(super) fn sealed_size(header: u64, payload: u64) -> Option<u64> {
    let tags = payload.div_ceil(CHUNK_BYTES).max(1).checked_mul(TAG_BYTES)?;
    payload.checked_add(tags)?.checked_add(header)?.checked_add(NONCE_BYTES)
}

/// Public keys that may open what is written, each once, in a fixed order.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipients(Arc<[(String, x25519::Recipient)]>);

impl Recipients {
    /// Reads public keys of the form `age1...`.
    ///
    /// # Errors
    /// `Config` for none, for too many, and for anything else than an X25519 public key.
    pub fn parse(texts: &[String]) -> Result<Self> {
        let mut recipients = texts
            .iter()
            .map(|text| parse_recipient(text.trim()))
            .collect::<Result<Vec<_>>>()?;
        recipients.sort_by(|a, b| a.0.cmp(&b.0));
        recipients.dedup_by(|a, b| a.0 == b.0);
        if recipients.is_empty() || recipients.len() > MAX_RECIPIENTS {
            return Err(Error::new(
                Kind::Config,
                format!(
                    "cannot encrypt to {} recipients, only to 1 to {MAX_RECIPIENTS}",
                    recipients.len()
                ),
            ));
        }
        Ok(Self(recipients.into()))
    }

    /// The keys as text.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(text, _)| text.as_str())
    }
}

impl std::fmt::Debug for Recipients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.texts()).finish()
    }
}

fn parse_recipient(text: &str) -> Result<(String, x25519::Recipient)> {
    // A secret key must not reach a log.
    if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY") {
        return Err(
            Error::new(Kind::Config, "a secret key stands where a recipient is wanted")
                .hint("recipients are public keys, \"age1...\"; `age-keygen -y FILE` prints the one of an identity"),
        );
    }
    match text.parse::<x25519::Recipient>() {
        Ok(recipient) => Ok((recipient.to_string(), recipient)),
        Err(why) => Err(Error::new(Kind::Config, format!("invalid recipient \"{text}\": {why}"))
            .hint("recipients are X25519 public keys, \"age1...\", as age-keygen makes them")),
    }
}

/// How objects are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sealing {
    /// Not at all.
    Clear,
    /// As age files for these recipients.
    Age(Recipients),
}

impl Sealing {
    /// What the names of such objects end in.
    pub fn suffix(&self) -> &'static str {
        match self {
            Self::Clear => "",
            Self::Age(_) => ".age",
        }
    }

    /// Whether such objects are encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self, Self::Age(_))
    }

    /// The recipients as text; none if it is not encrypted.
    pub fn recipients(&self) -> Vec<String> {
        match self {
            Self::Clear => Vec::new(),
            Self::Age(recipients) => recipients.texts().map(str::to_owned).collect(),
        }
    }

    /// Encrypts what is written on its way to `out`; with a descriptor, the header carries it.
    ///
    /// # Errors
    /// The kind of the writer's error.
    pub fn wrap<W: Write>(&self, out: W, descriptor: Option<&Descriptor>) -> Result<SealedWriter<W>> {
        let Self::Age(recipients) = self else {
            return Ok(SealedWriter(Inner::Clear(out)));
        };
        let stanza = descriptor.map(DescriptorStanza);
        let keys = recipients.0.iter().map(|(_, key)| key as &dyn age::Recipient);
        // The descriptor goes first, so that the first bytes of an object hold it.
        let all = stanza.iter().map(|stanza| stanza as &dyn age::Recipient).chain(keys);
        let encryptor = age::Encryptor::with_recipients(all)
            .map_err(|error| Error::new(Kind::Failed, format!("cannot encrypt: {error}")))?;
        // age writes its header word by word; chunks are larger than this buffer and pass it by.
        let out = BufWriter::with_capacity(4096, out);
        let writer = encryptor.wrap_output(out).context(|| "write the age header")?;
        Ok(SealedWriter(Inner::Age(writer)))
    }
}

/// The stanza that carries a descriptor; it wraps no key.
struct DescriptorStanza<'a>(&'a Descriptor);

impl age::Recipient for DescriptorStanza<'_> {
    fn wrap_file_key(&self, _: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        let stanza = Stanza {
            tag: header::STANZA.to_owned(),
            args: vec![hex(&self.0.encode())],
            body: Vec::new(),
        };
        // The same labels as X25519's, or age would not put them into one header.
        Ok((vec![stanza], HashSet::new()))
    }
}

/// Encrypts what is written to it. Without [`SealedWriter::finish`] the object is incomplete.
pub struct SealedWriter<W: Write>(Inner<W>);

enum Inner<W: Write> {
    Clear(W),
    Age(StreamWriter<BufWriter<W>>),
}

impl<W: Write> SealedWriter<W> {
    /// Writes what is left and gives back the writer.
    ///
    /// # Errors
    /// The kind of the writer's error.
    pub fn finish(self) -> Result<W> {
        let finishing = || "write the last encrypted chunk";
        match self.0 {
            Inner::Clear(out) => Ok(out),
            Inner::Age(writer) => {
                let buffered = writer.finish().context(finishing)?;
                buffered
                    .into_inner()
                    .map_err(io::IntoInnerError::into_error)
                    .context(finishing)
            }
        }
    }
}

impl<W: Write> Write for SealedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Clear(out) => out.write(bytes),
            Inner::Age(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::Clear(out) => out.flush(),
            Inner::Age(writer) => writer.flush(),
        }
    }
}
