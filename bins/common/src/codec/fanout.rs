//! One stream to several places, which fail on their own.

use std::io::{self, Write};

use crate::error::{Error, Kind, Result, chain};

/// Writes the same bytes to several writers; one that fails is left out from then on.
///
/// Its error is kept and comes out of [`Fanout::finish`]. Writing fails only once nobody is left.
pub struct Fanout<W> {
    outputs: Vec<Result<W>>,
}

impl<W: Write> Fanout<W> {
    /// Starts with writers, or the errors of those that could not even be opened.
    pub fn new(outputs: impl IntoIterator<Item = Result<W>>) -> Self {
        Self {
            outputs: outputs.into_iter().collect(),
        }
    }

    /// How many writers have not failed.
    pub fn alive(&self) -> usize {
        self.outputs.iter().filter(|output| output.is_ok()).count()
    }

    /// What became of each, in the order they were given.
    pub fn finish(self) -> Vec<Result<W>> {
        self.outputs
    }

    fn each(&mut self, what: &str, mut act: impl FnMut(&mut W) -> io::Result<()>) -> io::Result<()> {
        for output in &mut self.outputs {
            if let Ok(writer) = output
                && let Err(error) = act(writer)
            {
                *output = Err(Error::io(error, what));
            }
        }
        if self.alive() > 0 {
            return Ok(());
        }
        Err(self.nobody_left().into())
    }

    /// The causes stay where they are and are told here too; their kind tells whether asking again may help.
    fn nobody_left(&self) -> Error {
        let kinds = || {
            self.outputs
                .iter()
                .filter_map(|output| output.as_ref().err())
                .map(Error::kind)
        };
        let kind = match kinds().next() {
            None => Kind::Failed,
            Some(_) if kinds().any(|kind| kind == Kind::Transient) => Kind::Transient,
            Some(first) => first,
        };
        let causes: Vec<String> = self
            .outputs
            .iter()
            .filter_map(|output| output.as_ref().err())
            .map(|error| chain(error))
            .collect();
        match causes.as_slice() {
            [] => Error::new(kind, "no output is left to write to"),
            causes => Error::new(kind, format!("no output is left to write to: {}", causes.join("; "))),
        }
    }
}

impl<W: Write> Write for Fanout<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.each("write", |writer| writer.write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.each("flush", Write::flush)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    /// Takes so many bytes, then fails with a kind.
    struct Limited(Vec<u8>, usize, Kind);

    impl Write for Limited {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.len() + bytes.len() > self.1 {
                return Err(Error::new(self.2, "full").into());
            }
            self.0.extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_that_fails_is_skipped_and_the_others_get_everything() {
        let mut fanout = Fanout::new([
            Ok(Limited(Vec::new(), 5, Kind::Transient)),
            Err(Error::new(Kind::Config, "no such bucket")),
            Ok(Limited(Vec::new(), 99, Kind::Failed)),
        ]);
        for _ in 0..3 {
            fanout.write_all(b"abcd").unwrap();
        }
        assert_eq!(fanout.alive(), 1);
        let outcome = fanout.finish();
        assert_eq!(outcome[0].as_ref().err().unwrap().kind(), Kind::Transient);
        assert_eq!(outcome[1].as_ref().err().unwrap().kind(), Kind::Config);
        assert_eq!(outcome[2].as_ref().ok().unwrap().0, b"abcdabcdabcd");
    }

    #[test]
    fn when_all_have_failed_writing_fails_and_every_error_is_kept() {
        let mut fanout = Fanout::new([
            Ok(Limited(Vec::new(), 0, Kind::Failed)),
            Ok(Limited(Vec::new(), 0, Kind::Transient)),
        ]);
        let error = Error::io(fanout.write_all(b"x").unwrap_err(), "write bundle");
        assert_eq!(error.kind(), Kind::Transient);
        let kinds: Vec<_> = fanout
            .finish()
            .into_iter()
            .map(|output| output.err().unwrap().kind())
            .collect();
        assert_eq!(kinds, [Kind::Failed, Kind::Transient]);
    }

    #[test]
    fn nobody_to_write_to_is_an_error_and_not_silence() {
        let mut nobody = Fanout::<Vec<u8>>::new([]);
        assert!(nobody.write_all(b"x").is_err());
    }
}
