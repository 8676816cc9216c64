//! Logs of instances: tails.

/// Where the last `lines` lines of `bytes` begin; a last line without an end counts.
pub(crate) fn tail_offset(bytes: &[u8], lines: u32) -> usize {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if lines == 0 {
        return bytes.len();
    }
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(lines as usize - 1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::tail_offset;

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
        }
    }
}
