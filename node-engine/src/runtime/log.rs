//! Logs of instances: a file that is written by others, bounded by copying and truncating, read while it grows.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How much is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Where the last `lines` lines of `bytes` begin; a last line without an end counts.
pub(crate) fn tail_offset(bytes: &[u8], lines: u32) -> usize {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if lines == 0 {
        return bytes.len();
    }
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(lines as usize - 1).unwrap_or(0)
}

/// Moves the content of `log` to `old` and empties it, if it is longer than `limit` bytes; true if it was.
///
/// The writer has the file open for appending, so it goes on at the new end. Of more than `limit` bytes only the last
/// are kept. What is written between the copy and the truncation is lost; that is some microseconds' worth.
pub(crate) fn rotate(log: &Path, old: &Path, limit: u64) -> io::Result<bool> {
    let length = match std::fs::metadata(log) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if length <= limit {
        return Ok(false);
    }
    let mut from = File::options().read(true).write(true).open(log)?;
    let fresh = old.with_extension("new");
    let copied = copy_tail(&mut from, limit, &fresh)?;
    from.set_len(0)?;
    // A busy writer has added to it while it was copied.
    if copied > limit {
        let kept = old.with_extension("kept");
        copy_tail(&mut File::open(&fresh)?, limit, &kept)?;
        std::fs::rename(kept, &fresh)?;
    }
    std::fs::rename(&fresh, old)?;
    Ok(true)
}

/// Copies the last `limit` bytes of `from`, and what is added meanwhile, to a file at `to`. Returns how many that were.
fn copy_tail(from: &mut File, limit: u64, to: &Path) -> io::Result<u64> {
    let length = from.metadata()?.len();
    from.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut to = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    io::copy(from, &mut to)
}

/// A place in a log of two files, `old` before `log`. Rotation must not happen during a call.
#[derive(Debug)]
pub(crate) struct Reader {
    log: PathBuf,
    old: PathBuf,
    in_old: bool,
    offset: u64,
    rotations: u64,
}

impl Reader {
    /// At the beginning, or at the last `tail` lines. `rotations` counts those of this log so far.
    pub(crate) fn open(log: PathBuf, old: PathBuf, tail: Option<u32>, rotations: u64) -> io::Result<Self> {
        let mut reader = Self {
            in_old: old.exists(),
            log,
            old,
            offset: 0,
            rotations,
        };
        let Some(lines) = tail else { return Ok(reader) };
        let end = std::fs::metadata(&reader.log)?.len();
        (reader.in_old, reader.offset) = (false, end);
        if lines == 0 {
            return Ok(reader);
        }
        // One more line end is looked for, because the last line's own end does not count.
        let last = if end > 0 { &reader.log } else { &reader.old };
        let mut missing = u64::from(lines) + u64::from(ends_with_newline(last)?);
        for (in_old, path) in [(false, &reader.log), (true, &reader.old)] {
            let Some(start) = seek_back(path, &mut missing)? else {
                continue;
            };
            (reader.in_old, reader.offset) = (in_old, start);
            if missing == 0 {
                break;
            }
        }
        Ok(reader)
    }

    /// The next bytes; empty at the end. `rotations` counts those of this log so far.
    pub(crate) fn read(&mut self, rotations: u64) -> io::Result<Vec<u8>> {
        if rotations != self.rotations {
            // What was `log` is `old` now; after more than one rotation the place is lost, the oldest kept is next.
            let kept = !self.in_old && rotations == self.rotations + 1;
            self.offset = if kept { self.offset } else { 0 };
            (self.in_old, self.rotations) = (true, rotations);
        }
        if self.in_old {
            let chunk = read_at(&self.old, self.offset)?;
            if !chunk.is_empty() {
                self.offset += chunk.len() as u64;
                return Ok(chunk);
            }
            (self.in_old, self.offset) = (false, 0);
        }
        let chunk = read_at(&self.log, self.offset)?;
        self.offset += chunk.len() as u64;
        Ok(chunk)
    }
}

fn read_at(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut chunk = Vec::new();
    file.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

fn ends_with_newline(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let (length, mut last) = (file.metadata()?.len(), [0]);
    Ok(length > 0 && file.read_at(&mut last, length - 1)? == 1 && last == *b"\n")
}

/// Goes back from the end of a file until `missing` line ends are passed; `None` if there is no file.
fn seek_back(path: &Path, missing: &mut u64) -> io::Result<Option<u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut end = file.metadata()?.len();
    while end > 0 && *missing > 0 {
        let size = end.min(CHUNK_BYTES as u64);
        let mut chunk = vec![0; usize::try_from(size).expect("at most one chunk")];
        file.read_exact_at(&mut chunk, end - size)?;
        for (at, _) in chunk.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            *missing -= 1;
            if *missing == 0 {
                return Ok(Some(end - size + at as u64 + 1));
            }
        }
        end -= size;
    }
    Ok(Some(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn tail_counts_lines_from_the_end() {
        let table: [(&[u8], u32, &[u8]); 7] = [
            (b"a\nb\nc\n", 1, b"c\n"),
            (b"a\nb\nc\n", 2, b"b\nc\n"),
            (b"a\nb\nc", 1, b"c"),
            (b"a\nb\nc", 9, b"a\nb\nc"),
            (b"a\nb\n", 0, b""),
            (b"", 3, b""),
            (b"\n\n\n", 2, b"\n\n"),
        ];
        for (text, lines, tail) in table {
            assert_eq!(&text[tail_offset(text, lines)..], tail, "{text:?} {lines}");
            // The same over two files, cut anywhere.
            for cut in 0..=text.len() {
                let folder = tempfile::tempdir().expect("folder");
                let (log, old) = (folder.path().join("log"), folder.path().join("log.1"));
                std::fs::write(&old, &text[..cut]).expect("old");
                std::fs::write(&log, &text[cut..]).expect("log");
                let mut reader = Reader::open(log, old, Some(lines), 0).expect("open");
                let mut read = Vec::new();
                loop {
                    let chunk = reader.read(0).expect("read");
                    if chunk.is_empty() {
                        break;
                    }
                    read.extend(chunk);
                }
                assert_eq!(read, tail, "{text:?} {lines} cut at {cut}");
            }
        }
    }

    #[test]
    fn a_busy_writer_does_not_make_the_old_log_longer() {
        let folder = tempfile::tempdir().expect("folder");
        let (log, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let mut writer = File::options().append(true).create(true).open(&log).expect("log");
        std::thread::scope(|scope| {
            let writing =
                scope.spawn(move || (0..20_000).for_each(|_| writer.write_all(&[b'x'; 4096]).expect("write")));
            let mut rotations = 0;
            while !writing.is_finished() || rotations == 0 {
                if rotate(&log, &old, 64 << 10).expect("rotate") {
                    rotations += 1;
                    assert_eq!(std::fs::metadata(&old).expect("old").len(), 64 << 10);
                }
            }
        });
    }

    #[test]
    fn a_log_is_bounded_and_a_reader_follows_over_a_rotation() {
        let folder = tempfile::tempdir().expect("folder");
        let (log, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let mut writer = File::options().append(true).create(true).open(&log).expect("log");
        writer.write_all(b"0123456789").expect("write");
        let mut reader = Reader::open(log.clone(), old.clone(), None, 0).expect("open");
        assert!(!rotate(&log, &old, 10).expect("rotate"), "not longer than the limit");
        assert_eq!(reader.read(0).expect("read"), b"0123456789");
        writer.write_all(b"ab").expect("write");
        assert!(rotate(&log, &old, 12).is_ok_and(|rotated| !rotated));
        assert!(rotate(&log, &old, 11).expect("rotate"));
        writer.write_all(b"cd").expect("write");
        assert_eq!(std::fs::read(&old).expect("old"), b"123456789ab");
        assert_eq!(
            std::fs::read(&log).expect("log"),
            b"cd",
            "the writer goes on at the new end"
        );
        // The first byte fell out, so the reader is one byte too far; it never repeats a byte.
        assert_eq!(reader.read(1).expect("read"), b"b");
        assert_eq!(reader.read(1).expect("read"), b"cd");
        assert_eq!(reader.read(1).expect("read"), b"");
    }
}
