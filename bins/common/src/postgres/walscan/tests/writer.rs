//! Writes WAL for tests: records over pages and segments as PostgreSQL 15 lays them out.

use super::Segment;

pub(super) const SEGMENT: usize = 1 << 20;
const PAGE: usize = 8192;
const SYSTEM: u64 = 42;

/// One record, not yet placed.
pub(super) struct Record {
    pub(super) info: u8,
    pub(super) manager: u8,
    pub(super) references: Vec<u8>,
    pub(super) main: Vec<u8>,
}

impl Record {
    pub(super) fn new(manager: u8, info: u8, main: &[u8]) -> Self {
        Self {
            info,
            manager,
            references: Vec::new(),
            main: main.to_vec(),
        }
    }

    /// Adds a reference to a block of relation 1663/5/16384.
    pub(super) fn block(mut self, block: u32) -> Self {
        self.references.extend_from_slice(&[0, 0, 0, 0]);
        for number in [1663, 5, 16384, block] {
            self.references.extend_from_slice(&u32::to_le_bytes(number));
        }
        self
    }
}

/// WAL from the start of segment 1 on.
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    previous: u64,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            previous: 0x80,
        }
    }

    pub(super) fn lsn(&self) -> u64 {
        (SEGMENT + self.bytes.len()) as u64
    }

    /// Starts a page if one is due; `flags` and `remaining` go into its header.
    fn page(&mut self, flags: u16, remaining: u32) {
        if !self.bytes.len().is_multiple_of(PAGE) {
            return;
        }
        let first = self.bytes.len().is_multiple_of(SEGMENT);
        let address = self.lsn();
        self.bytes.extend_from_slice(&0xd110u16.to_le_bytes());
        self.bytes
            .extend_from_slice(&(flags | if first { 2 } else { 0 }).to_le_bytes());
        self.bytes.extend_from_slice(&1u32.to_le_bytes());
        self.bytes.extend_from_slice(&address.to_le_bytes());
        self.bytes.extend_from_slice(&remaining.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if first {
            self.bytes.extend_from_slice(&SYSTEM.to_le_bytes());
            self.bytes.extend_from_slice(&(SEGMENT as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }

    /// Writes a record; gives where it starts.
    pub(super) fn put(&mut self, record: &Record) -> u64 {
        self.page(0, 0);
        let start = self.lsn();
        let body = self.assemble(record);
        self.copy(&body);
        self.previous = start;
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        start
    }

    /// Writes a record only up to the end of its segment, as a crash leaves it; the next page says that another
    /// record takes its place.
    pub(super) fn put_torn_at_segment_end(&mut self, record: &Record) -> u64 {
        self.page(0, 0);
        let (start, before) = (self.lsn(), self.previous);
        let body = self.assemble(record);
        let end = (self.bytes.len() / SEGMENT + 1) * SEGMENT;
        self.copy(&body);
        assert!(self.bytes.len() > end);
        self.bytes.truncate(end);
        self.previous = before;
        self.page(8, 0);
        start
    }

    fn assemble(&self, record: &Record) -> Vec<u8> {
        let mut body = record.references.clone();
        body.push(254);
        body.extend_from_slice(&(record.main.len() as u32).to_le_bytes());
        body.extend_from_slice(&record.main);
        let mut head = (24 + body.len() as u32).to_le_bytes().to_vec();
        head.extend_from_slice(&7u32.to_le_bytes());
        head.extend_from_slice(&self.previous.to_le_bytes());
        head.extend_from_slice(&[record.info, record.manager, 0, 0]);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&body), &head);
        head.extend_from_slice(&sum.to_le_bytes());
        head.extend_from_slice(&body);
        head
    }

    fn copy(&mut self, mut body: &[u8]) {
        while !body.is_empty() {
            self.page(1, body.len() as u32);
            let room = (PAGE - self.bytes.len() % PAGE).min(body.len());
            self.bytes.extend_from_slice(&body[..room]);
            body = &body[room..];
        }
    }

    /// Fills the rest of the segment except `room` bytes with records that change nothing.
    pub(super) fn fill_segment_but(&mut self, room: usize) {
        let target = (self.bytes.len() / SEGMENT + 1) * SEGMENT - room;
        while self.bytes.len() < target {
            self.page(0, 0);
            let room_in_page = PAGE - self.bytes.len() % PAGE;
            let length = room_in_page.min(target - self.bytes.len()) - 29;
            self.put(&Record::new(0, 0x20, &vec![1; length]));
        }
        assert_eq!(self.bytes.len(), target);
    }

    /// The segments, the last one filled with zeros.
    pub(super) fn segments(mut self) -> Vec<(Segment, Vec<u8>)> {
        let whole = self.bytes.len().next_multiple_of(SEGMENT);
        self.bytes.resize(whole, 0);
        let chunks = self.bytes.chunks(SEGMENT).zip(1u64..);
        chunks
            .map(|(bytes, number)| {
                let segment = Segment {
                    system_identifier: SYSTEM,
                    timeline: 1,
                    start: number << 20,
                    size: SEGMENT as u32,
                    major: 15,
                    sha256: [0; 32],
                };
                (segment, bytes.to_vec())
            })
            .collect()
    }
}
