//! Ways to damage a file as disks, hands and other programs do. They work on objects that nobody may write (0400), and
//! leave owner and mode as they were, unless that is the damage.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// Opens for writing, whatever the mode says, and puts the mode back afterwards.
fn change(path: &Path, damage: impl FnOnce(&mut File)) {
    let mode = fs::metadata(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .permissions();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    damage(&mut OpenOptions::new().read(true).write(true).open(path).unwrap());
    fs::set_permissions(path, mode).unwrap();
}

/// Turns around one bit (0 to 7) of the byte at `offset`.
pub fn flip_bit(path: &Path, offset: u64, bit: u8) {
    change(path, |file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset)
            .unwrap_or_else(|error| panic!("{} @{offset}: {error}", path.display()));
        file.write_all_at(&[byte[0] ^ (1 << bit)], offset).unwrap();
    });
}

/// Turns around a bit in the middle.
pub fn flip_middle_bit(path: &Path) {
    flip_bit(path, fs::metadata(path).unwrap().len() / 2, 3);
}

/// Replaces bytes.
pub fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    change(path, |file| file.write_all_at(bytes, offset).unwrap());
}

/// Cuts to `length` bytes, or grows with zeros.
pub fn truncate(path: &Path, length: u64) {
    change(path, |file| file.set_len(length).unwrap());
}

/// Cuts the last byte.
pub fn cut_last_byte(path: &Path) {
    truncate(path, fs::metadata(path).unwrap().len() - 1);
}

/// Leaves an empty file.
pub fn empty(path: &Path) {
    truncate(path, 0);
}

/// Adds bytes at the end.
pub fn append(path: &Path, bytes: &[u8]) {
    change(path, |file| {
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(bytes).unwrap();
    });
}

/// Removes a file, or a directory with all it holds.
pub fn remove(path: &Path) {
    let result = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    result.unwrap_or_else(|error| panic!("remove {}: {error}", path.display()));
}

/// Sets the mode. Root is not stopped by one; the tools, which run as postgres, are.
pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Exchanges two files.
pub fn swap(one: &Path, other: &Path) {
    let beside = one.with_extension("swapping");
    fs::rename(one, &beside).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(&beside, other).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(directory: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = directory.join(name);
        fs::write(&path, bytes).unwrap();
        chmod(&path, 0o400);
        path
    }

    #[test]
    fn damage_changes_the_bytes_and_leaves_the_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = object(directory.path(), "one", b"abc");
        flip_bit(&path, 1, 0);
        assert_eq!(fs::read(&path).unwrap(), b"acc");
        flip_middle_bit(&path);
        assert_eq!(fs::read(&path).unwrap(), b"akc");
        overwrite(&path, 0, b"x");
        append(&path, b"!");
        assert_eq!(fs::read(&path).unwrap(), b"xkc!");
        cut_last_byte(&path);
        truncate(&path, 2);
        assert_eq!(fs::read(&path).unwrap(), b"xk");
        empty(&path);
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o400);
    }

    #[test]
    fn two_swapped_files_have_each_other_s_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (
            object(directory.path(), "one", b"1"),
            object(directory.path(), "other", b"2"),
        );
        swap(&one, &other);
        assert_eq!(
            (fs::read(&one).unwrap(), fs::read(&other).unwrap()),
            (b"2".to_vec(), b"1".to_vec())
        );
        remove(&one);
        assert!(!one.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
