//! Scans one WAL segment, fed in pieces of any size, and makes its map.
//!
//! Knows: pages, records and how they lie across pages, for PostgreSQL 13 to 18.
//! Promises: never panics and never fails, whatever it is fed. What it does not understand ends the map with a
//! [`Doubt`]; a block is missing from the map only behind [`SegmentMap::known_until`]. Memory is bounded by one page,
//! one record ([`LONGEST_KEPT`]) and the distinct blocks of one segment.
//! Leaves to others: records that cross segments ([`super::walmap::join`] decodes them from the fragments kept), and
//! the state of data checksums, which WAL does not tell up to version 18.
//!
//! A segment may end before its file does (`.partial`, the end of a timeline): zeros after the last record, then zero
//! pages or old pages of a recycled file. A received `.partial` file may have an old record's rest there instead; then
//! the map is `Incomplete` rather than `Ended` at the same position, and nothing is lost.

mod effects;
mod gather;
mod page;
mod record;
#[cfg(test)]
mod tests;

use self::page::{LONG_HEADER, LongFields, PageHeader};
pub(in crate::postgres) use effects::{apply, matters};
pub(in crate::postgres) use gather::Gather;
pub(in crate::postgres) use record::{HEADER_BYTES, Header, LONGEST_RECORD, checksum, references};

use super::walmap::{Doubt, Entry, Exit, FirstRecord, LastRecord, Leading, Segment, SegmentMap, Trailing};

/// Fragments of records that cross the segment's ends are kept up to this length, unless the caller asks for more: enough for the
/// images of 33 pages, the most that a record has (`XLR_MAX_BLOCK_ID`, `src/include/access/xlogrecord.h` of PostgreSQL 17; building an
/// index writes 32 at a time, `src/backend/access/transam/xloginsert.c`). Else every boundary in such WAL would be opaque.
pub const FRAGMENT_LIMIT: usize = 288 * 1024;
/// Of a longer record only this much is held; what it means beyond its blocks is then unknown (and asks for a full
/// backup where it matters).
pub const LONGEST_KEPT: usize = 4 * 1024 * 1024;

const DEFAULT_PAGE: usize = 8192;

/// Makes the map of one segment.
pub struct Scanner {
    segment: Segment,
    magic: u16,
    fragment_limit: usize,
    /// Size of a page; known once the first header has been seen.
    page_size: Option<usize>,
    /// A page that came in pieces.
    partial: Vec<u8>,
    /// Bytes of whole pages read so far.
    read: u64,
    state: State,
    page_timelines: (u32, u32),
    entry: Entry,
    leading: Vec<u8>,
    leading_left: u32,
    pending: Pending,
    /// Set when a page says that it replaces a broken record: where that starts, if it is known.
    overwrite: Option<Option<u64>>,
    first_record: Option<FirstRecord>,
    last_record: Option<LastRecord>,
    /// Where the next record may start.
    next: u64,
    gather: Gather,
}

enum State {
    Reading,
    /// Behind a switch: padding.
    Padding,
    /// Behind the end of WAL, which stands here.
    Ended(u64),
    /// Nothing more is understood.
    Broken(u64, Doubt),
}

/// A record that has begun and goes on in the next page.
#[derive(Default)]
struct Pending {
    start: u64,
    total: u32,
    received: u32,
    /// Its first bytes, at most the limit given to `append`.
    held: Vec<u8>,
    /// CRC of what was received behind the header.
    sum: u32,
}

impl Pending {
    fn begin(&mut self, start: u64, total: u32) {
        self.start = start;
        self.total = total;
        self.received = 0;
        self.held.clear();
        self.sum = 0;
    }

    fn is_active(&self) -> bool {
        self.received < self.total
    }

    fn clear(&mut self) {
        self.begin(0, 0);
    }

    fn append(&mut self, piece: &[u8], limit: usize) {
        let header_left = HEADER_BYTES.saturating_sub(self.received as usize);
        self.sum = crc32c::crc32c_append(self.sum, piece.get(header_left..).unwrap_or_default());
        let room = limit.saturating_sub(self.held.len()).min(piece.len());
        self.held.extend_from_slice(piece.get(..room).unwrap_or_default());
        // A piece is never longer than what the record lacks.
        self.received = self.received.saturating_add(piece.len() as u32);
    }
}

/// A position and what is wrong there.
type Failure = (u64, Doubt);

impl Scanner {
    /// Makes a scanner for `segment`, of which the digest need not be known yet.
    ///
    /// The size must be a power of two from 1 MiB to 1 GiB and the start a multiple of it.
    pub fn new(segment: Segment) -> Self {
        let magic = page::magic(segment.major);
        let state = match magic {
            Some(_) => State::Reading,
            None => State::Broken(segment.start, Doubt::Version),
        };
        Self {
            segment,
            magic: magic.unwrap_or_default(),
            fragment_limit: FRAGMENT_LIMIT,
            page_size: None,
            partial: Vec::new(),
            read: 0,
            state,
            page_timelines: (0, 0),
            entry: Entry::Unknown,
            leading: Vec::new(),
            leading_left: 0,
            pending: Pending::default(),
            overwrite: None,
            first_record: None,
            last_record: None,
            next: segment.start,
            gather: Gather::default(),
        }
    }

    /// Keeps fragments of records that cross the segment's ends up to `limit` bytes: to read segments again whose maps
    /// are opaque. Such a record may be as long as 1 GiB.
    #[must_use]
    pub fn keep_fragments(mut self, limit: usize) -> Self {
        self.fragment_limit = limit;
        self
    }

    /// Scans the next bytes of the segment.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let want = match self.page_size {
                Some(size) => size,
                None if self.partial.is_empty() && bytes.len() >= LONG_HEADER => {
                    self.page_size = Some(page_size(bytes));
                    continue;
                }
                None => LONG_HEADER,
            };
            if self.partial.is_empty()
                && self.page_size.is_some()
                && let Some((page, rest)) = bytes.split_at_checked(want)
            {
                self.page(page);
                bytes = rest;
                continue;
            }
            let missing = want.saturating_sub(self.partial.len()).min(bytes.len());
            let (piece, rest) = bytes.split_at(missing);
            self.partial.extend_from_slice(piece);
            bytes = rest;
            if self.page_size.is_none() && self.partial.len() >= LONG_HEADER {
                self.page_size = Some(page_size(&self.partial));
            } else if self.page_size.is_some_and(|size| self.partial.len() >= size) {
                let page = std::mem::take(&mut self.partial);
                self.page(&page);
                self.partial = page;
                self.partial.clear();
            }
        }
    }

    /// Ends the scan: the map of what was fed.
    pub fn finish(mut self) -> SegmentMap {
        let whole = self.read >= u64::from(self.segment.size) && self.partial.is_empty();
        let exit = match &self.state {
            State::Broken(lsn, doubt) => Exit::Incomplete {
                lsn: *lsn,
                doubt: *doubt,
            },
            State::Ended(lsn) => Exit::Ended { lsn: *lsn },
            _ if !whole => Exit::Incomplete {
                lsn: self.doubtful_from(self.next),
                doubt: Doubt::Short,
            },
            State::Padding => Exit::Switch,
            State::Reading if self.leading_left > 0 => Exit::Through,
            State::Reading if self.pending.is_active() => Exit::Trailing(self.trailing()),
            State::Reading => Exit::Filled,
        };
        self.finish_leading(whole);
        SegmentMap {
            segment: self.segment,
            page_timelines: self.page_timelines,
            entry: self.entry,
            exit,
            first_record: self.first_record,
            last_record: self.last_record,
            changes: self.gather.finish(self.segment.start),
        }
    }

    fn finish_leading(&mut self, whole: bool) {
        if let Entry::Continuation(leading) = &mut self.entry {
            leading.held = leading.remaining.saturating_sub(self.leading_left);
            // While the state is Reading at the segment's end the record passes through: all that is here was read.
            let all_read = self.leading_left == 0 || (whole && matches!(self.state, State::Reading));
            if all_read && self.leading.len() == leading.held as usize {
                leading.bytes = Some(std::mem::take(&mut self.leading));
            }
        }
    }

    fn trailing(&mut self) -> Trailing {
        let pending = &mut self.pending;
        if self.first_record.is_none() {
            self.first_record = Header::parse(&pending.held).map(|header| FirstRecord {
                start: pending.start,
                previous: header.previous,
            });
        }
        let kept = pending.received as usize <= self.fragment_limit;
        Trailing {
            start: pending.start,
            total: pending.total,
            held: pending.received,
            bytes: kept.then(|| std::mem::take(&mut pending.held)),
        }
    }

    /// Where doubt begins if it arises at `lsn`: a record that is not finished is doubtful as a whole.
    fn doubtful_from(&self, lsn: u64) -> u64 {
        if self.pending.is_active() {
            self.pending.start
        } else {
            lsn
        }
    }

    fn page(&mut self, page: &[u8]) {
        let lsn = self.segment.start.saturating_add(self.read);
        self.read = self.read.saturating_add(page.len() as u64);
        if self.read > u64::from(self.segment.size) {
            if !matches!(self.state, State::Broken(..)) {
                self.state = State::Broken(self.doubtful_from(self.next.min(self.segment.end())), Doubt::Long);
            }
            return;
        }
        match self.state {
            State::Broken(..) | State::Padding => {}
            State::Ended(end) => {
                let header = PageHeader::parse(page, false, self.magic);
                if header.is_ok_and(|header| header.address == lsn) {
                    self.state = State::Broken(end, Doubt::AfterEnd);
                }
            }
            State::Reading => {
                if let Err((at, doubt)) = self.read_page(page, lsn) {
                    self.state = State::Broken(at, doubt);
                }
            }
        }
    }

    fn read_page(&mut self, page: &[u8], lsn: u64) -> Result<(), Failure> {
        let first = lsn == self.segment.start;
        if is_zero(page) {
            self.state = State::Ended(self.doubtful_from(lsn));
            return Ok(());
        }
        let header = self
            .header(page, lsn, first)
            .map_err(|doubt| (self.doubtful_from(lsn), doubt))?;
        let mut at = header.length;
        if first {
            self.enter(&header);
        }
        if header.overwrites && !first {
            let broken = self.pending.is_active().then_some(self.pending.start);
            // Without a record to replace, or within one that began earlier, the flag makes no sense.
            let lsn = broken.ok_or((self.doubtful_from(lsn), Doubt::Continuation))?;
            self.overwrite = Some(Some(lsn));
            self.pending.clear();
        }
        let expected = if self.leading_left > 0 {
            Some(self.leading_left)
        } else if self.pending.is_active() {
            Some(self.pending.total - self.pending.received)
        } else {
            None
        };
        if header.continues != expected {
            return Err((self.doubtful_from(lsn), Doubt::Continuation));
        }
        if let Some(missing) = expected {
            at = self.continue_record(page, at, missing, lsn)?;
        }
        self.records(page, at, lsn)
    }

    fn header(&mut self, page: &[u8], lsn: u64, first: bool) -> Result<PageHeader, Doubt> {
        let header = PageHeader::parse(page, first, self.magic)?;
        if first {
            let long = LongFields::parse(page).ok_or(Doubt::PageHeader)?;
            if long.segment_size != self.segment.size || !long.has_possible_page_size() {
                return Err(Doubt::PageHeader);
            }
            if long.system_identifier != self.segment.system_identifier {
                return Err(Doubt::SystemIdentifier);
            }
        }
        if header.address != lsn {
            return Err(Doubt::PageAddress);
        }
        if header.timeline > self.segment.timeline || header.timeline < self.page_timelines.1 {
            return Err(Doubt::PageTimeline);
        }
        if first {
            self.page_timelines.0 = header.timeline;
        }
        self.page_timelines.1 = header.timeline;
        Ok(header)
    }

    fn enter(&mut self, header: &PageHeader) {
        self.entry = match header.continues {
            Some(remaining) => {
                self.leading_left = remaining;
                Entry::Continuation(Leading {
                    remaining,
                    held: 0,
                    bytes: None,
                })
            }
            // What the flag's record replaces is filled in when the record has been read.
            None if header.overwrites => {
                self.overwrite = Some(None);
                Entry::Unknown
            }
            None => Entry::Record,
        };
    }

    /// Takes the continued bytes from the page; gives where the next record may start.
    fn continue_record(&mut self, page: &[u8], at: usize, missing: u32, lsn: u64) -> Result<usize, Failure> {
        let body = page.get(at..).unwrap_or_default();
        let length = body.len().min(missing as usize);
        let piece = body.get(..length).unwrap_or_default();
        let end = align(at + length);
        if self.leading_left > 0 {
            if self.leading.len() + length <= self.fragment_limit {
                self.leading.extend_from_slice(piece);
            } else {
                // Too long to keep; what lacks a piece never has the right length, so it is dropped in the end.
                self.leading.clear();
            }
            self.leading_left -= length as u32;
            self.next = lsn + end as u64;
            return Ok(end);
        }
        self.pending.append(piece, LONGEST_KEPT.max(self.fragment_limit));
        self.next = lsn + end as u64;
        if self.pending.is_active() {
            return Ok(end);
        }
        // Taken out while it is looked at, so that its memory can be used again.
        let pending = std::mem::take(&mut self.pending);
        let seen = self.record(
            &pending.held,
            pending.total,
            pending.start,
            lsn + end as u64,
            pending.sum,
        );
        self.pending = pending;
        seen.map_err(|doubt| (self.pending.start, doubt))?;
        Ok(end)
    }

    /// Reads the records that start at `at` and behind it in the page.
    fn records(&mut self, page: &[u8], mut at: usize, lsn: u64) -> Result<(), Failure> {
        while matches!(self.state, State::Reading) {
            let rest = page.get(at..).unwrap_or_default();
            let Some(length) = rest.first_chunk().map(|raw| u32::from_le_bytes(*raw)) else {
                break;
            };
            let start = lsn + at as u64;
            if length == 0 {
                if !is_zero(rest) {
                    return Err((start, Doubt::AfterEnd));
                }
                self.state = State::Ended(start);
                break;
            }
            if (length as usize) < HEADER_BYTES || length > LONGEST_RECORD {
                return Err((start, Doubt::RecordLength));
            }
            let Some(record) = rest.get(..length as usize) else {
                self.pending.begin(start, length);
                self.pending.append(rest, LONGEST_KEPT.max(self.fragment_limit));
                break;
            };
            at = align(at + length as usize);
            let sum = crc32c::crc32c(record.get(HEADER_BYTES..).unwrap_or_default());
            self.record(record, length, start, lsn + at as u64, sum)
                .map_err(|doubt| (start, doubt))?;
        }
        Ok(())
    }

    /// A record that has been read to its end; `bytes` may lack the end of a very long one.
    #[inline]
    fn record(&mut self, bytes: &[u8], total: u32, start: u64, end: u64, body_sum: u32) -> Result<(), Doubt> {
        let header = Header::parse(bytes).ok_or(Doubt::RecordLength)?;
        if checksum(body_sum, bytes) != header.checksum {
            return Err(Doubt::RecordChecksum);
        }
        let linked = match &self.last_record {
            Some(last) => header.previous == last.start,
            None => header.previous < start,
        };
        if !linked {
            return Err(Doubt::PreviousLink);
        }
        let main = decode(&mut self.gather, &header, bytes, end, self.segment.major)?;
        if let Some(expected) = self.overwrite.take() {
            let replaced = effects::overwritten(&header, main.unwrap_or_default());
            let replaced = replaced.ok_or(Doubt::Continuation)?;
            match expected {
                Some(lsn) if lsn != replaced => return Err(Doubt::Continuation),
                Some(_) => {}
                None => self.entry = Entry::Overwrite { lsn: replaced },
            }
        }
        self.first_record.get_or_insert(FirstRecord {
            start,
            previous: header.previous,
        });
        debug_assert_eq!(total, header.total);
        self.last_record = Some(LastRecord { start, end });
        self.next = end;
        if effects::is_switch(&header) {
            self.state = State::Padding;
        }
        Ok(())
    }
}

/// Notes the blocks and the meaning of a record whose checksum holds; gives its main data where it was kept.
#[inline]
pub(in crate::postgres) fn decode<'a>(
    gather: &mut Gather,
    header: &Header,
    bytes: &'a [u8],
    end: u64,
    major: u8,
) -> Result<Option<&'a [u8]>, Doubt> {
    if !header.has_known_manager(major) {
        return Err(Doubt::ResourceManager);
    }
    let main = references(bytes, header.total, major, |fork, block| gather.block(fork, block))?;
    let main = bytes.get(main);
    if matters(header) {
        apply(gather, header, main, end, major);
    }
    Ok(main)
}

/// The size of pages that the first header names; one that is impossible is doubted later.
fn page_size(head: &[u8]) -> usize {
    match LongFields::parse(head) {
        Some(long) if long.has_possible_page_size() => long.page_size as usize,
        _ => DEFAULT_PAGE,
    }
}

/// Records start at multiples of 8.
fn align(at: usize) -> usize {
    at.next_multiple_of(8)
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first byte decides almost always; the rest is compared in words.
    bytes.first().is_none_or(|byte| *byte == 0) && {
        let mut chunks = bytes.chunks_exact(16);
        chunks.all(|chunk| chunk == [0u8; 16]) && chunks.remainder().iter().all(|byte| *byte == 0)
    }
}
