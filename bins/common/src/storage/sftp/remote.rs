//! What is asked of an SFTP server, as functions: names and handles in, answers out.

use super::session::{Session, Ticket, Trouble};
use super::wire::{self, Attributes, Code, Name, Reply, Request};
use crate::error::{Error, Kind};
use crate::storage::Space;

/// An open file or directory on the server.
#[derive(Debug, Clone)]
pub(super) struct Handle(Vec<u8>);

pub(super) type Answer<T> = Result<T, Trouble>;

/// An answer of a type that was not asked for.
fn misfit(reply: Reply) -> Trouble {
    let name = match reply {
        Reply::Status(..) => "a status",
        Reply::Handle(_) => "a handle",
        Reply::Data(_) => "data",
        Reply::Names(_) => "names",
        Reply::Attributes(_) => "attributes",
        Reply::Extended(_) => "an extension",
    };
    Trouble::Ended(Error::new(
        Kind::Transient,
        format!("the server answered {name} to another question"),
    ))
}

fn done(reply: Reply) -> Answer<()> {
    match reply {
        Reply::Status(Code::Ok, _) => Ok(()),
        other => Err(misfit(other)),
    }
}

fn attributes(reply: Reply) -> Answer<Attributes> {
    match reply {
        Reply::Attributes(attributes) => Ok(attributes),
        other => Err(misfit(other)),
    }
}

impl Session {
    /// Sends the request to open a file; the mode counts for one that is created.
    pub(super) fn send_open(&self, path: &str, flags: u32, mode: u32) -> Answer<Ticket> {
        let request = Request::new(wire::OPEN).text(path.as_bytes()).u32(flags);
        self.send(match flags & wire::FLAG_CREATE {
            0 => request.no_attributes(),
            _ => request.mode(mode),
        })
    }

    pub(super) fn wait_handle(&self, ticket: Ticket) -> Answer<Handle> {
        match self.wait(ticket)? {
            Reply::Handle(handle) => Ok(Handle(handle)),
            other => Err(misfit(other)),
        }
    }

    /// Creates a file whose name must be free.
    pub(super) fn create(&self, path: &str, mode: u32) -> Answer<Handle> {
        let flags = wire::FLAG_WRITE | wire::FLAG_CREATE | wire::FLAG_EXCLUSIVE;
        self.wait_handle(self.send_open(path, flags, mode)?)
    }

    /// Opens a file that is there.
    pub(super) fn open(&self, path: &str, flags: u32) -> Answer<Handle> {
        self.wait_handle(self.send_open(path, flags, 0)?)
    }

    pub(super) fn open_directory(&self, path: &str) -> Answer<Handle> {
        self.wait_handle(self.send(Request::new(wire::OPENDIR).text(path.as_bytes()))?)
    }

    /// Closes a handle. Whatever could go wrong has shown in a sync before.
    pub(super) fn close(&self, handle: &Handle) {
        self.send_and_forget(Request::new(wire::CLOSE).text(&handle.0));
    }

    pub(super) fn send_write(&self, handle: &Handle, offset: u64, bytes: &[u8]) -> Answer<Ticket> {
        self.send(Request::new(wire::WRITE).text(&handle.0).u64(offset).text(bytes))
    }

    pub(super) fn send_read(&self, handle: &Handle, offset: u64, length: usize) -> Answer<Ticket> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.send(Request::new(wire::READ).text(&handle.0).u64(offset).u32(length))
    }

    /// The bytes that came; `None` at the end of the file.
    pub(super) fn wait_read(&self, ticket: Ticket) -> Answer<Option<wire::Data>> {
        match self.wait(ticket) {
            Ok(Reply::Data(data)) => Ok(Some(data)),
            Ok(other) => Err(misfit(other)),
            Err(Trouble::Said(Code::End, _)) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    pub(super) fn send_readdir(&self, handle: &Handle) -> Answer<Ticket> {
        self.send(Request::new(wire::READDIR).text(&handle.0))
    }

    /// The names that came; `None` at the end of the directory.
    pub(super) fn wait_readdir(&self, ticket: Ticket) -> Answer<Option<Vec<Name>>> {
        match self.wait(ticket) {
            Ok(Reply::Names(names)) => Ok(Some(names)),
            Ok(other) => Err(misfit(other)),
            Err(Trouble::Said(Code::End, _)) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Sends the request that writes a file's bytes to the disk.
    pub(super) fn send_settle(&self, handle: &Handle) -> Answer<Ticket> {
        self.send_sync(Request::extended("fsync@openssh.com").text(&handle.0))
    }

    pub(super) fn send_mode(&self, handle: &Handle, mode: u32) -> Answer<Ticket> {
        self.send(Request::new(wire::FSETSTAT).text(&handle.0).mode(mode))
    }

    pub(super) fn send_mode_of(&self, path: &str, mode: u32) -> Answer<Ticket> {
        self.send(Request::new(wire::SETSTAT).text(path.as_bytes()).mode(mode))
    }

    pub(super) fn send_fstat(&self, handle: &Handle) -> Answer<Ticket> {
        self.send(Request::new(wire::FSTAT).text(&handle.0))
    }

    pub(super) fn wait_done(&self, ticket: Ticket) -> Answer<()> {
        done(self.wait(ticket)?)
    }

    pub(super) fn wait_attributes(&self, ticket: Ticket) -> Answer<Attributes> {
        attributes(self.wait(ticket)?)
    }

    /// Looks at a name itself.
    pub(super) fn send_lstat(&self, path: &str) -> Answer<Ticket> {
        self.send(Request::new(wire::LSTAT).text(path.as_bytes()))
    }

    pub(super) fn lstat(&self, path: &str) -> Answer<Attributes> {
        self.wait_attributes(self.send_lstat(path)?)
    }

    /// Looks at what a name leads to.
    pub(super) fn stat(&self, path: &str) -> Answer<Attributes> {
        attributes(self.ask(Request::new(wire::STAT).text(path.as_bytes()))?)
    }

    pub(super) fn make_directory(&self, path: &str, mode: u32) -> Answer<()> {
        done(self.ask(Request::new(wire::MKDIR).text(path.as_bytes()).mode(mode))?)
    }

    pub(super) fn remove_directory(&self, path: &str) -> Answer<()> {
        done(self.ask(Request::new(wire::RMDIR).text(path.as_bytes()))?)
    }

    pub(super) fn remove(&self, path: &str) -> Answer<()> {
        done(self.ask(Request::new(wire::REMOVE).text(path.as_bytes()))?)
    }

    pub(super) fn remove_and_forget(&self, path: &str) {
        self.send_and_forget(Request::new(wire::REMOVE).text(path.as_bytes()));
    }

    /// Gives a file a second name, which must be free.
    pub(super) fn link(&self, from: &str, to: &str) -> Answer<()> {
        let request = Request::extended("hardlink@openssh.com");
        done(self.ask(request.text(from.as_bytes()).text(to.as_bytes()))?)
    }

    /// Renames by the request of version 3, which should refuse a name that is taken.
    pub(super) fn plain_rename(&self, from: &str, to: &str) -> Answer<()> {
        let request = Request::new(wire::RENAME);
        done(self.ask(request.text(from.as_bytes()).text(to.as_bytes()))?)
    }

    /// Renames over whatever has the name.
    pub(super) fn replacing_rename(&self, from: &str, to: &str) -> Answer<()> {
        let request = Request::extended("posix-rename@openssh.com");
        done(self.ask(request.text(from.as_bytes()).text(to.as_bytes()))?)
    }

    /// The room on the file system of a path, and whether another file fits; `None` where the server cannot say.
    pub(super) fn space(&self, path: &str) -> Answer<Option<(Space, bool)>> {
        if !self.abilities().statvfs {
            return Ok(None);
        }
        let reply = self.ask(Request::extended("statvfs@openssh.com").text(path.as_bytes()))?;
        match &reply {
            // Block size, fragment size; blocks: all, free, available; files: the same.
            Reply::Extended(values) => match values.get(..8) {
                Some([_, unit, blocks, _, available, files, _, more]) => {
                    let space = Space {
                        total: blocks.saturating_mul(*unit),
                        available: available.saturating_mul(*unit),
                    };
                    // A file system that makes its inodes as it goes counts none.
                    Ok(Some((space, *files == 0 || *more > 0)))
                }
                _ => Ok(None),
            },
            _ => Err(misfit(reply)),
        }
    }
}
