//! Text files, read line by line, with errors that name the line.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a text file cannot be used.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{}: {reason}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        reason: std::io::Error,
    },
    /// A line is wrong.
    #[error("{}:{line}: {reason}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The cause.
        reason: String,
    },
}

/// Calls `read` with the number and text of each line that is not blank.
///
/// # Errors
/// [`FileError`], also for a line that is not UTF-8 and for an error of `read`.
pub fn each_line(
    path: &Path,
    mut read: impl FnMut(usize, &str) -> Result<(), String>,
) -> Result<(), FileError> {
    let bytes =
        std::fs::read(path).map_err(|reason| FileError::Unreadable { path: path.to_owned(), reason })?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    for (line, number) in bytes.split(|&byte| byte == b'\n').zip(1..) {
        let result = line_text(line).and_then(|text| match text.trim().is_empty() {
            true => Ok(()),
            false => read(number, text),
        });
        result.map_err(|reason| FileError::Line { path: path.to_owned(), line: number, reason })?;
    }
    Ok(())
}

/// A line without its line ending.
///
/// # Errors
/// The position of the first byte that is not UTF-8.
pub fn line_text(line: &[u8]) -> Result<&str, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line))
        .map_err(|error| format!("is not UTF-8 at byte {} of the line", error.valid_up_to()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_count_and_what_is_wrong_has_its_line() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let mut found = Vec::new();
            let result = each_line(&path, |number, line| {
                found.push((number, line.to_owned()));
                if line == "bad" { Err("is bad".to_owned()) } else { Ok(()) }
            });
            (found, result.map_err(|error| error.to_string().rsplit('/').next().unwrap().to_owned()))
        };
        let (found, result) = read("\u{feff}a\r\n\n \t\nb c".as_bytes());
        assert_eq!((found, result), (vec![(1, "a".to_owned()), (4, "b c".to_owned())], Ok(())));
        assert_eq!(read(b"a\nbad\nb").1, Err("x:2: is bad".to_owned()));
        assert_eq!(read(b"a\n\nb\xff\n").1, Err("x:3: is not UTF-8 at byte 1 of the line".to_owned()));
        let missing = each_line(&place.path().join("y"), |_, _| Ok(())).unwrap_err();
        assert!(matches!(missing, FileError::Unreadable { .. }));
    }
}
