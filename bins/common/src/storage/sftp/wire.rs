//! The packets of SFTP version 3 (draft-ietf-secsh-filexfer-02) and of OpenSSH's extensions (its file PROTOCOL), as bytes.
//!
//! Pure: nothing is sent here. What a server says is bytes from the network: it is parsed with checks, never trusted.

use crate::error::{Error, Kind, Result};

/// The version spoken here, which every server offers.
pub(super) const VERSION: u32 = 3;

/// The longest reply that is accepted; OpenSSH sends at most 256 KiB.
pub(super) const REPLY_BYTES: usize = 1 << 20;

pub(super) const INIT: u8 = 1;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const SETSTAT: u8 = 9;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const RMDIR: u8 = 15;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const EXTENDED: u8 = 200;

const REPLY_VERSION: u8 = 2;
const REPLY_STATUS: u8 = 101;
const REPLY_HANDLE: u8 = 102;
const REPLY_DATA: u8 = 103;
const REPLY_NAME: u8 = 104;
const REPLY_ATTRS: u8 = 105;
const REPLY_EXTENDED: u8 = 201;

pub(super) const FLAG_READ: u32 = 0x01;
pub(super) const FLAG_WRITE: u32 = 0x02;
pub(super) const FLAG_CREATE: u32 = 0x08;
pub(super) const FLAG_EXCLUSIVE: u32 = 0x20;

const ATTR_SIZE: u32 = 0x01;
const ATTR_OWNER: u32 = 0x02;
const ATTR_PERMISSIONS: u32 = 0x04;
const ATTR_TIMES: u32 = 0x08;
const ATTR_EXTENDED: u32 = 0x8000_0000;

const TYPE_MASK: u32 = 0o170_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_LINK: u32 = 0o120_000;

/// A request being put together.
pub(super) struct Request(Vec<u8>);

impl Request {
    /// Begins a request; its number is filled in when it is sent.
    pub(super) fn new(kind: u8) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&[0; 4]);
        bytes.push(kind);
        bytes.extend_from_slice(&[0; 4]);
        Self(bytes)
    }

    /// One of OpenSSH's extensions.
    pub(super) fn extended(name: &str) -> Self {
        Self::new(EXTENDED).text(name.as_bytes())
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn text(self, bytes: &[u8]) -> Self {
        // What is sent is far below 4 GiB: names of at most a few KiB, and chunks of the session's choosing.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut request = self.u32(length);
        request.0.extend_from_slice(bytes);
        request
    }

    /// Attributes that say the mode only.
    pub(super) fn mode(self, mode: u32) -> Self {
        self.u32(ATTR_PERMISSIONS).u32(mode)
    }

    /// Attributes that say nothing.
    pub(super) fn no_attributes(self) -> Self {
        self.u32(0)
    }

    /// The packet, with its length and number.
    pub(super) fn numbered(mut self, id: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        for (at, bytes) in [(0, length.to_be_bytes()), (5, id.to_be_bytes())] {
            if let Some(place) = self.0.get_mut(at..at + 4) {
                place.copy_from_slice(&bytes);
            }
        }
        self.0
    }
}

/// The first packet, which has a version in place of a number.
pub(super) fn init() -> Vec<u8> {
    Request::new(INIT).numbered(VERSION)
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileType {
    File,
    Directory,
    Link,
    /// A device, a pipe, a socket, or what the server did not say.
    Other,
}

/// What a server says of a file; what it left out is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    pub(super) permissions: Option<u32>,
    /// Seconds since 1970, unsigned: good until 2106.
    pub(super) modified: Option<u32>,
}

impl Attributes {
    pub(super) fn file_type(&self) -> FileType {
        match self.permissions.map(|mode| mode & TYPE_MASK) {
            Some(TYPE_FILE) => FileType::File,
            Some(TYPE_DIRECTORY) => FileType::Directory,
            Some(TYPE_LINK) => FileType::Link,
            _ => FileType::Other,
        }
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) name: Vec<u8>,
    pub(super) attributes: Attributes,
}

/// Bytes of a file, still in the packet that brought them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Data {
    packet: Vec<u8>,
    from: usize,
}

impl Data {
    pub(super) fn bytes(&self) -> &[u8] {
        self.packet.get(self.from..).unwrap_or_default()
    }
}

/// How a request went where the server says no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    Ok,
    End,
    NoSuchFile,
    PermissionDenied,
    /// Everything that has no code of its own: a name that is taken, a full disk, an I/O error.
    Failure,
    Unsupported,
    Other(u32),
}

impl From<u32> for Code {
    fn from(code: u32) -> Self {
        match code {
            0 => Self::Ok,
            1 => Self::End,
            2 => Self::NoSuchFile,
            3 => Self::PermissionDenied,
            4 => Self::Failure,
            8 => Self::Unsupported,
            other => Self::Other(other),
        }
    }
}

/// What a server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Status(Code, String),
    Handle(Vec<u8>),
    Data(Data),
    Names(Vec<Name>),
    Attributes(Attributes),
    Extended(Vec<u64>),
}

/// What the first reply says: the server's extensions with their versions.
pub(super) fn parse_version(packet: &[u8]) -> Result<Vec<(String, String)>> {
    let mut input = Input(packet);
    if input.u8()? != REPLY_VERSION {
        return Err(garbled("it is not the beginning of SFTP"));
    }
    let version = input.u32()?;
    if version < VERSION {
        return Err(garbled("it is an SFTP older than version 3"));
    }
    let mut extensions = Vec::new();
    while !input.0.is_empty() {
        let mut text = || Ok::<_, Error>(String::from_utf8_lossy(input.text()?).into_owned());
        extensions.push((text()?, text()?));
    }
    Ok(extensions)
}

/// Takes a reply apart: the number of its request, and what it says.
pub(super) fn parse_reply(packet: Vec<u8>) -> Result<(u32, Reply)> {
    let mut input = Input(&packet);
    let (kind, id) = (input.u8()?, input.u32()?);
    let reply = match kind {
        REPLY_STATUS => {
            let code = input.u32()?.into();
            // Servers of earlier drafts say no more.
            let message = if input.0.is_empty() { b"" } else { input.text()? };
            Reply::Status(code, String::from_utf8_lossy(message).into_owned())
        }
        REPLY_HANDLE => Reply::Handle(input.text()?.to_vec()),
        REPLY_DATA => {
            let length = input.text()?.len();
            let from = packet.len() - input.0.len() - length;
            let mut packet = packet;
            packet.truncate(from + length);
            return Ok((id, Reply::Data(Data { packet, from })));
        }
        REPLY_NAME => {
            let count = input.u32()?;
            let mut names = Vec::new();
            for _ in 0..count {
                let name = input.text()?.to_vec();
                // A line as `ls -l` has it, for people.
                input.text()?;
                let attributes = input.attributes()?;
                names.push(Name { name, attributes });
            }
            Reply::Names(names)
        }
        REPLY_ATTRS => Reply::Attributes(input.attributes()?),
        REPLY_EXTENDED => {
            let mut values = Vec::new();
            while input.0.len() >= 8 {
                values.push(input.u64()?);
            }
            Reply::Extended(values)
        }
        other => return Err(garbled(&format!("a packet of unknown type {other}"))),
    };
    Ok((id, reply))
}

fn garbled(what: &str) -> Error {
    Error::new(
        Kind::Transient,
        format!("the server's answer cannot be understood: {what}"),
    )
}

/// Bytes still to be taken apart.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| garbled("a packet ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| garbled("a packet ends too early"))
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<&'a [u8]> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| garbled("a text without end"))?)
    }

    fn attributes(&mut self) -> Result<Attributes> {
        let flags = self.u32()?;
        let mut found = Attributes::default();
        if flags & ATTR_SIZE != 0 {
            found.size = Some(self.u64()?);
        }
        if flags & ATTR_OWNER != 0 {
            self.take(8)?;
        }
        if flags & ATTR_PERMISSIONS != 0 {
            found.permissions = Some(self.u32()?);
        }
        if flags & ATTR_TIMES != 0 {
            self.take(4)?;
            found.modified = Some(self.u32()?);
        }
        if flags & ATTR_EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.text()?;
                self.text()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_has_its_length_and_number() {
        assert_eq!(init(), [0, 0, 0, 5, 1, 0, 0, 0, 3]);
        let packet = Request::new(OPEN)
            .text(b"/a")
            .u32(FLAG_READ)
            .no_attributes()
            .numbered(7);
        assert_eq!(
            packet,
            [
                0, 0, 0, 19, 3, 0, 0, 0, 7, 0, 0, 0, 2, b'/', b'a', 0, 0, 0, 1, 0, 0, 0, 0
            ]
        );
    }

    #[test]
    fn replies_are_taken_apart() {
        let status = b"\x65\0\0\0\x09\0\0\0\x02\0\0\0\x04gone\0\0\0\0".to_vec();
        assert_eq!(
            parse_reply(status).unwrap(),
            (9, Reply::Status(Code::NoSuchFile, "gone".into()))
        );
        assert_eq!(
            parse_reply(b"\x65\0\0\0\x01\0\0\0\x04".to_vec()).unwrap().1,
            Reply::Status(Code::Failure, String::new())
        );
        let Reply::Data(data) = parse_reply(b"\x67\0\0\0\x01\0\0\0\x03abcrest".to_vec()).unwrap().1 else {
            panic!("no data")
        };
        assert_eq!(data.bytes(), b"abc");
        let name = b"\x68\0\0\0\x01\0\0\0\x01\0\0\0\x01x\0\0\0\x02ls\0\0\0\x0f\0\0\0\0\0\0\x01\0\
            \0\0\0\x01\0\0\0\x02\0\0\x81\xa4\0\0\0\x05\0\0\0\x06";
        let Reply::Names(names) = parse_reply(name.to_vec()).unwrap().1 else {
            panic!("no names")
        };
        assert_eq!((names.len(), names[0].name.as_slice()), (1, &b"x"[..]));
        let attributes = names[0].attributes;
        assert_eq!(
            (attributes.size, attributes.modified, attributes.file_type()),
            (Some(256), Some(6), FileType::File)
        );
    }

    #[test]
    fn a_file_type_that_nobody_knows_is_none_of_ours() {
        for mode in [0, 0o110_000, 0o170_000, u32::MAX] {
            let attributes = Attributes {
                permissions: Some(mode),
                ..Attributes::default()
            };
            assert_eq!(attributes.file_type(), FileType::Other, "{mode:o}");
        }
        assert_eq!(Attributes::default().file_type(), FileType::Other);
    }

    #[test]
    fn what_is_no_sftp_is_refused() {
        assert!(parse_version(b"Welcome!").is_err());
        assert!(parse_version(b"\x02\0\0\0\x02").is_err());
        let extensions = parse_version(b"\x02\0\0\0\x03\0\0\0\x01a\0\0\0\x011").unwrap();
        assert_eq!(extensions, [("a".to_owned(), "1".to_owned())]);
    }

    proptest! {
        #[test]
        fn no_packet_panics(packet in proptest::collection::vec(any::<u8>(), 0..200), kind in 100u8..106) {
            let _ = parse_version(&packet);
            let _ = parse_reply(packet.clone());
            let mut packet = packet;
            packet.insert(0, kind);
            if let Ok((_, Reply::Data(data))) = parse_reply(packet.clone()) {
                prop_assert!(data.bytes().len() <= packet.len());
            }
        }
    }
}
