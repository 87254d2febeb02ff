//! Decryption, and the identities it needs.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use age::secrecy::{ExposeSecret, SecretString};
use age::stream::StreamReader;
use age::{DecryptError, Decryptor, Identity, x25519};

use super::header::AgeHeader;
use super::seekable::SeekableReader;
use crate::codec::corrupt;
use crate::codec::descriptor::Descriptor;
use crate::error::{Context, Error, Kind, Result};
use crate::secret;

/// An identity file longer than this is something else.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// What is read at a time while looking for the end of a header.
const HEADER_READ_BYTES: usize = 4096;

/// Makes a new key: the text of an identity file, and the public key for it.
pub fn generate_identity() -> (String, String) {
    let identity = x25519::Identity::generate();
    let public = identity.to_public().to_string();
    let secret = identity.to_string();
    (format!("# public key: {public}\n{}\n", secret.expose_secret()), public)
}

/// The secret keys to read with, or none.
#[derive(Clone, Default)]
pub struct Opening {
    identities: Arc<[x25519::Identity]>,
    /// Where they came from, for messages.
    origin: Option<Arc<str>>,
    /// Why the configured ones cannot be used.
    unusable: Option<Arc<Error>>,
}

impl std::fmt::Debug for Opening {
    /// Says how many keys there are, never which.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opening({} identities)", self.identities.len())
    }
}

impl Opening {
    /// Reads only what is not encrypted.
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads identities from a file: lines of `AGE-SECRET-KEY-1...`, empty ones, comments.
    ///
    /// The file must belong to its reader alone; what systemd hands over as a credential, owned by root
    /// with mode 0440, is accepted too.
    ///
    /// # Errors
    /// `Config` if there is no such file, others may read it, or it holds anything else; else the kind
    /// of the system's error.
    pub fn from_identity_file(path: &Path) -> Result<Self> {
        let file = secret::open(path, "identity file")?;
        let mut text = Vec::new();
        let reading = || format!("read identities from {}", path.display());
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).context(reading)?;
        let text = String::from_utf8(text).unwrap_or_default();
        Self::parse(SecretString::from(text), path)
    }

    fn parse(text: SecretString, path: &Path) -> Result<Self> {
        let path = path.display();
        let mut identities = Vec::new();
        for (number, line) in text.expose_secret().lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The line itself may be secret.
            identities.push(line.parse::<x25519::Identity>().map_err(|why| {
                Error::new(
                    Kind::Config,
                    format!("line {} of {path} is no identity: {why}", number + 1),
                )
                .hint("identities are lines \"AGE-SECRET-KEY-1...\", as age-keygen makes them")
            })?);
        }
        if identities.is_empty() || text.expose_secret().len() as u64 > MAX_FILE_BYTES {
            return Err(Error::new(Kind::Config, format!("{path} is no identity file")));
        }
        Ok(Self {
            identities: identities.into(),
            origin: Some(path.to_string().into()),
            unusable: None,
        })
    }

    /// Has no identity, for this reason: what is configured cannot be used. Writing needs none, so it goes on; whoever wants
    /// to read hears why that is impossible.
    pub fn unusable(why: Error) -> Self {
        Self {
            unusable: Some(Arc::new(why)),
            ..Self::default()
        }
    }

    /// Why the configured identities cannot be used, if so.
    pub fn why_unusable(&self) -> Option<&Error> {
        self.unusable.as_deref()
    }

    /// Whether there is any identity.
    pub fn has_identity(&self) -> bool {
        !self.identities.is_empty()
    }

    /// The public keys of the identities.
    pub fn public_keys(&self) -> Vec<String> {
        self.identities
            .iter()
            .map(|identity| identity.to_public().to_string())
            .collect()
    }

    /// Decrypts `source` if it is `sealed`, else passes it through.
    ///
    /// # Errors
    /// `Config` without a fitting identity; `Corrupt` if the header is damaged; the kind of the source's
    /// error. Errors met while reading on travel inside the `io::Error`; damage is `InvalidData` there.
    pub fn open<R: Read>(&self, source: R, sealed: bool) -> Result<OpenReader<R>> {
        if !sealed {
            return Ok(OpenReader(Inner::Clear(source)));
        }
        let (head, reader) = self.decrypt(source)?;
        Ok(OpenReader(Inner::Sealed {
            reader,
            descriptor: head.descriptor,
        }))
    }

    /// The same for a source that can seek, so that any part is read without what is before it.
    ///
    /// # Errors
    /// As for [`Opening::open`].
    pub fn open_seekable<R: Read + Seek>(&self, mut source: R, sealed: bool) -> Result<SeekableReader<R>> {
        if !sealed {
            return Ok(SeekableReader::clear(source));
        }
        let opening = || "open the encrypted object";
        let stored = source.seek(SeekFrom::End(0)).context(opening)?;
        source.seek(SeekFrom::Start(0)).context(opening)?;
        let (head, reader) = self.decrypt(source)?;
        SeekableReader::sealed(reader, head.length, stored)
    }

    fn decrypt<R: Read>(&self, source: R) -> Result<(AgeHeader, StreamReader<Headed<R>>)> {
        if let Some(why) = self.why_unusable() {
            return Err(why.copy().context("cannot decrypt"));
        }
        if self.identities.is_empty() {
            return Err(
                Error::new(Kind::Config, "cannot decrypt: no identity is configured here")
                    .hint("set encryption.identity_file, or run this where the identity is"),
            );
        }
        let (head, source) = Headed::read(source)?;
        let decryptor = Decryptor::new_buffered(source).map_err(|error| self.explain(error, &head))?;
        let identities = self.identities.iter().map(|identity| identity as &dyn Identity);
        let reader = decryptor
            .decrypt(identities)
            .map_err(|error| self.explain(error, &head))?;
        Ok((head, reader))
    }

    /// Says in our words what age has met.
    fn explain(&self, error: DecryptError, header: &AgeHeader) -> Error {
        match error {
            DecryptError::Io(error) => Error::io(error, "read the age header"),
            // Whoever damages the wrapped key looks like another recipient; only the hint can say so.
            DecryptError::NoMatchingKeys if header.recipients > 0 => Error::new(
                Kind::Config,
                format!(
                    "cannot decrypt: no identity in {} opens this object",
                    self.origin.as_deref().unwrap_or("use")
                ),
            )
            .hint("it was encrypted to other recipients, or its header is damaged"),
            DecryptError::NoMatchingKeys => corrupt("the age header names no recipient"),
            DecryptError::InvalidMac => corrupt("the age header is damaged: its MAC does not fit"),
            _ => corrupt("the age header is damaged"),
        }
    }
}

/// Reads what [`Opening::open`] has opened.
pub struct OpenReader<R>(Inner<R>);

// The large one is the one in use wherever this matters.
#[allow(clippy::large_enum_variant)]
enum Inner<R> {
    Clear(R),
    Sealed {
        reader: StreamReader<Headed<R>>,
        descriptor: Option<Descriptor>,
    },
}

impl<R> OpenReader<R> {
    /// The descriptor in the header of an encrypted object, confirmed by the header's MAC.
    pub fn descriptor(&self) -> Option<&Descriptor> {
        match &self.0 {
            Inner::Clear(_) => None,
            Inner::Sealed { descriptor, .. } => descriptor.as_ref(),
        }
    }
}

impl<R: Read> Read for OpenReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Clear(source) => source.read(into),
            Inner::Sealed { reader, .. } => reader.read(into),
        }
    }
}

/// A source whose header has been read already and is offered once more.
pub(super) struct Headed<R> {
    head: Vec<u8>,
    taken: usize,
    source: BufReader<R>,
}

impl<R: Read> Headed<R> {
    /// Reads the header, and not a byte more of what the caller will see.
    fn read(source: R) -> Result<(AgeHeader, Self)> {
        let mut source = BufReader::with_capacity(HEADER_READ_BYTES, source);
        let mut head = Vec::new();
        while !is_complete(&head) && head.len() < AgeHeader::LIMIT {
            let room = (AgeHeader::LIMIT - head.len()) as u64;
            let line = (&mut source).take(room).read_until(b'\n', &mut head);
            if line.context(|| "read the age header")? == 0 {
                break;
            }
        }
        let parsed = AgeHeader::parse(&head)?;
        Ok((parsed, Self { head, taken: 0, source }))
    }

    fn rest(&self) -> &[u8] {
        self.head.get(self.taken..).unwrap_or_default()
    }
}

/// Whether the last line of `head` is a whole one and carries the MAC.
fn is_complete(head: &[u8]) -> bool {
    head.strip_suffix(b"\n")
        .and_then(|lines| lines.rsplit(|byte| *byte == b'\n').next())
        .is_some_and(|last| last.starts_with(b"---"))
}

impl<R: Read> Read for Headed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.rest().is_empty() {
            return self.source.read(into);
        }
        let length = self.rest().read(into)?;
        self.taken += length;
        Ok(length)
    }
}

impl<R: Read> BufRead for Headed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest().is_empty() {
            return self.source.fill_buf();
        }
        Ok(self.head.get(self.taken..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        if self.rest().is_empty() {
            self.source.consume(amount);
        } else {
            self.taken = self.taken.saturating_add(amount).min(self.head.len());
        }
    }
}

/// Positions are those of the source; age seeks only once the header has been read.
impl<R: Read + Seek> Seek for Headed<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.taken = self.head.len();
        self.source.seek(to)
    }

    fn stream_position(&mut self) -> io::Result<u64> {
        let position = self.source.stream_position()?;
        Ok(position.saturating_sub(self.rest().len() as u64))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn written(text: &str, mode: u32) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identity.txt");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn a_file_with_comments_and_two_keys_gives_both() {
        let ((first, one), (second, two)) = (generate_identity(), generate_identity());
        let (_directory, path) = written(&format!("# ours\r\n{first}\n\n  {second}"), 0o600);
        let opening = Opening::from_identity_file(&path).unwrap();
        assert_eq!(opening.public_keys(), [one, two]);
        assert!(!format!("{opening:?}").contains("SECRET"));
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_the_way_out() {
        let (_directory, path) = written(&generate_identity().0, 0o644);
        let error = Opening::from_identity_file(&path).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert_eq!(error.nearest_hint().unwrap(), format!("chmod 600 {}", path.display()));
    }

    #[test]
    fn an_identity_that_cannot_be_used_is_named_by_whoever_wants_to_read() {
        let why = Opening::from_identity_file(Path::new("/nonexistent/identity")).unwrap_err();
        let opening = Opening::unusable(why);
        assert!(!opening.has_identity());
        assert!(
            opening.open(&b"plain"[..], false).is_ok(),
            "what is in clear needs no identity"
        );
        let error = opening.open(&b"sealed"[..], true).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(
            crate::error::chain(&error).contains("/nonexistent/identity"),
            "{error:?}"
        );
    }

    #[test]
    fn a_missing_an_empty_and_a_wrong_file_are_configuration_errors() {
        let missing = Opening::from_identity_file(Path::new("/nonexistent/identity")).unwrap_err();
        assert_eq!(missing.kind(), Kind::Config);
        for text in ["", "# nothing\n", "age1xyz\n", "AGE-SECRET-KEY-1QQQQ\n"] {
            let (_directory, path) = written(text, 0o600);
            let error = Opening::from_identity_file(&path).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{text}");
            assert!(!error.to_string().contains("QQQQ"));
        }
        let directory = Opening::from_identity_file(Path::new("/")).unwrap_err();
        assert_eq!(directory.kind(), Kind::Config);
    }
}
