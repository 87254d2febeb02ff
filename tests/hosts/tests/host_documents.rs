//! Everything that a document tells the reader to type is typed, from top to bottom, on a host that has what the document says it has.
//! What is not, and why, stands in `tests/hosts/src/typed.rs`.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::panic)]

mod documents_stand;

use documents_stand::{by_hand, chosen, daily, disasters, first, guide, runbooks};
use host_tests::reader::Before;
use host_tests::typed::{STORIES, write_record};
use host_tests::{Lab, Reader};

/// Types the documents of a story; `PGKEEP_RECORD` writes down that it was done,
/// `PGKEEP_DOCUMENT` leaves out all documents but one.
fn story(name: &str, begin: fn(&mut Reader), before: Before, end: fn(&mut Reader)) {
    let Some(lab) = Lab::need(name, &["bookworm"]) else {
        return;
    };
    let (_, documents) = STORIES.iter().find(|(other, _)| *other == name).unwrap();
    let mut reader = Reader::new(&lab);
    begin(&mut reader);
    let only = chosen();
    for document in documents
        .iter()
        .filter(|document| only.as_deref().is_none_or(|only| only == **document))
    {
        reader.types(document, before);
    }
    end(&mut reader);
    assert!(reader.wrong.is_empty(), "{}", reader.wrong.join("\n\n"));
    if std::env::var_os("PGKEEP_RECORD").is_some() && only.is_none() {
        write_record(documents);
    }
}

#[test]
fn the_first_page() {
    story("the_first_page", first::begin, first::before, |_| ());
}

#[test]
fn the_guide() {
    story("the_guide", guide::begin, guide::before, |_| ());
}

#[test]
fn what_is_done_every_day() {
    story("what_is_done_every_day", daily::begin, daily::before, |_| ());
}

#[test]
fn the_runbooks() {
    story("the_runbooks", runbooks::begin, runbooks::before, |_| ());
}

#[test]
fn the_disasters() {
    story("the_disasters", disasters::begin, disasters::before, |_| ());
}

#[test]
fn recovery_by_hand() {
    story("recovery_by_hand", by_hand::begin, by_hand::before, by_hand::end);
}
