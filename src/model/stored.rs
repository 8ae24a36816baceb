//! Tensors as they lie in a model's files: read one at a time, so that a model is never in memory twice.

use half::{bf16, f16};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError};
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;
use thiserror::Error;

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;
/// The longest header of a safetensors file, by its format.
const HEADER_MAX: u64 = 100_000_000;

/// A safetensors file: on disk, or in the program.
#[derive(Debug)]
pub(super) enum Content {
    /// Its bytes.
    Memory(Cow<'static, [u8]>),
    /// Opened once, so that a file that is replaced meanwhile stays the same.
    Disk(Disk),
}

/// A file on disk, as it was when it was opened.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    path: PathBuf,
    bytes: u64,
    modified: SystemTime,
    /// Why a part of it could not be read again.
    failed: OnceLock<String>,
}

/// A file of a model is no longer the one that was opened, so that its values and its hash may be of different contents.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{} {reason} while the model was loaded; load it again when the file is complete", .path.display())]
pub struct FileChanged {
    path: PathBuf,
    reason: String,
}

impl Disk {
    /// Whether it has been written to. A write changes the length or the time of modification before its bytes can be
    /// read, so that all that was read before this call is of the file that was opened; but for a file that another write
    /// had changed in the same tick of the system's clock, a few milliseconds before it was opened.
    fn check(&self) -> Result<(), FileChanged> {
        let reason = match (
            self.failed.get(),
            self.file.metadata().and_then(|now| Ok((now.len(), now.modified()?))),
        ) {
            (Some(reason), _) => format!("could not be read again ({reason})"),
            (None, Err(error)) => format!("could not be read again ({error})"),
            (None, Ok(now)) if now == (self.bytes, self.modified) => return Ok(()),
            (None, Ok(_)) => "was overwritten".to_owned(),
        };
        Err(FileChanged { path: self.path.clone(), reason })
    }
}

impl Content {
    /// Opens a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let (bytes, modified) = (metadata.len(), metadata.modified()?);
        Ok(Self::Disk(Disk { file, path: path.to_owned(), bytes, modified, failed: OnceLock::new() }))
    }

    /// Whether it is still what was opened.
    pub fn check(&self) -> Result<(), FileChanged> {
        match self {
            Self::Memory(_) => Ok(()),
            Self::Disk(disk) => disk.check(),
        }
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Disk(disk) => disk.bytes,
        }
    }

    /// Reads all bytes of `to` from a place on.
    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Memory(bytes) => {
                let from = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.get(..to.len()));
                to.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            Self::Disk(disk) => disk.file.read_exact_at(to, at),
        }
    }

    /// Whether its first bytes are these. Reads one byte at least, so that a folder is an error.
    pub fn begins_with(&self, start: &[u8]) -> io::Result<bool> {
        if self.bytes() < start.len() as u64 {
            let mut all = vec![0; self.bytes().min(1) as usize];
            return self.read(0, &mut all).map(|()| false);
        }
        let mut found = vec![0; start.len()];
        self.read(0, &mut found)?;
        Ok(found == start)
    }

    /// Passes a range of its bytes on, in chunks of whole values of each [`Width`].
    pub fn each_chunk(&self, range: Range<u64>, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let Range { start: mut at, end } = range;
        let mut chunk = vec![0; end.saturating_sub(at).min(CHUNK as u64) as usize];
        while at < end {
            let now = &mut chunk[..(end - at).min(CHUNK as u64) as usize];
            self.read(at, now)?;
            take(now);
            at += now.len() as u64;
        }
        Ok(())
    }

    /// Its header, and where the tensors' bytes begin.
    pub fn header(&self) -> Result<(Metadata, u64), SafeTensorError> {
        let mut length = [0; 8];
        if self.bytes() < length.len() as u64 {
            return Err(SafeTensorError::HeaderTooSmall);
        }
        self.read(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > HEADER_MAX {
            return Err(SafeTensorError::HeaderTooLarge);
        }
        if length > self.bytes() - 8 {
            return Err(SafeTensorError::InvalidHeaderLength);
        }
        let mut header = vec![0; length as usize];
        self.read(8, &mut header)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(SafeTensorError::InvalidHeaderDeserialization)?;
        match metadata.data_len() as u64 == self.bytes() - 8 - length {
            true => Ok((metadata, 8 + length)),
            false => Err(SafeTensorError::MetadataIncompleteBuffer),
        }
    }
}

/// Values in a file.
#[derive(Clone, Debug)]
pub struct Stored {
    pub(super) content: Arc<Content>,
    pub(super) dtype: Width,
    /// The first byte.
    pub(super) at: u64,
    /// How many values there are.
    pub(super) count: usize,
}

impl PartialEq for Stored {
    fn eq(&self, other: &Self) -> bool {
        let place = |stored: &Self| (stored.dtype, stored.at, stored.count);
        Arc::ptr_eq(&self.content, &other.content) && place(self) == place(other)
    }
}

/// The types of values that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    F32,
    F16,
    Bf16,
}

impl Width {
    /// The type of a file's tensor, if it is read.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Passes on the values of whole bytes.
    pub fn convert(self, bytes: &[u8], mut take: impl FnMut(f32)) {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().for_each(|&b| take(f32::from_le_bytes(b))),
            Self::F16 => bytes.as_chunks().0.iter().for_each(|&b| take(f16::from_le_bytes(b).to_f32())),
            Self::Bf16 => bytes.as_chunks().0.iter().for_each(|&b| take(bf16::from_le_bytes(b).to_f32())),
        }
    }
}

impl Stored {
    /// Its bytes in the file.
    pub(super) fn range(&self) -> Range<u64> {
        self.at..self.at + self.count as u64 * self.dtype.bytes()
    }

    /// Whether its file is still what was opened.
    pub(super) fn check(&self) -> Result<(), FileChanged> {
        self.content.check()
    }

    /// The values; NaN for those that cannot be read any more, because the file was cut short or its device has failed.
    /// [`Content::check`] is then an error.
    pub(super) fn values(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.count);
        let take = |chunk: &[u8]| self.dtype.convert(chunk, |value| values.push(value));
        let read = self.content.each_chunk(self.range(), take);
        if let (Err(error), Content::Disk(disk)) = (read, &*self.content) {
            let _ = disk.failed.set(error.to_string());
        }
        values.resize(self.count, f32::NAN);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    /// A file of a tensor that ends amid a chunk, after one of three bytes, so that no place is aligned.
    fn file(values: &[f32]) -> Vec<u8> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let views = [
            ("a", TensorView::new(Dtype::U8, vec![3], &[1, 2, 3]).unwrap()),
            ("b", TensorView::new(Dtype::F32, vec![values.len()], &bytes).unwrap()),
        ];
        safetensors::serialize(views, None).unwrap()
    }

    fn on_disk(bytes: &[u8]) -> (tempfile::NamedTempFile, Content) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let content = Content::open(file.path()).unwrap();
        (file, content)
    }

    fn stored(content: Content, count: usize) -> Stored {
        let (header, start) = content.header().unwrap();
        let at = start + header.info("b").unwrap().data_offsets.0 as u64;
        Stored { content: Arc::new(content), dtype: Width::F32, at, count }
    }

    #[test]
    fn values_are_the_same_from_a_file_and_from_memory() {
        let values: Vec<f32> = (0..600_000).map(|value| value as f32 / 7.0).collect();
        let bytes = file(&values);
        let (_file, content) = on_disk(&bytes);
        let mut read = Vec::new();
        content.each_chunk(0..content.bytes(), |chunk| read.extend_from_slice(chunk)).unwrap();
        assert!(read == bytes);
        assert!(stored(content, values.len()).values() == values);
        assert!(stored(Content::Memory(bytes.into()), values.len()).values() == values);
    }

    #[test]
    fn a_file_that_is_replaced_stays_what_it_was() {
        let (place, content) = on_disk(&file(&[1.0, 2.0]));
        let stored = stored(content, 2);
        let other = tempfile::NamedTempFile::new_in(place.path().parent().unwrap()).unwrap();
        std::fs::rename(other.path(), place.path()).unwrap();
        assert_eq!(stored.values(), [1.0, 2.0]);
        assert_eq!(stored.content.check(), Ok(()));
    }

    #[test]
    fn a_file_that_is_overwritten_in_place_is_told() {
        let (place, content) = on_disk(&file(&[1.0, 2.0]));
        assert_eq!(content.check(), Ok(()));
        let later = SystemTime::UNIX_EPOCH;
        File::options().write(true).open(place.path()).unwrap().set_modified(later).unwrap();
        let error = content.check().unwrap_err().to_string();
        let expected = " was overwritten while the model was loaded; load it again when the file is complete";
        assert_eq!(error, format!("{}{expected}", place.path().display()));
    }

    #[test]
    fn a_file_that_is_cut_short_meanwhile_is_told() {
        let bytes = file(&[1.0, 2.0]);
        let (place, content) = on_disk(&bytes);
        let stored = stored(content, 2);
        std::fs::write(place.path(), b"").unwrap();
        assert!(stored.values().iter().all(|value| value.is_nan()));
        // The same bytes come too late: some were missing when they were read.
        std::fs::write(place.path(), &bytes).unwrap();
        let error = stored.content.check().unwrap_err().to_string();
        assert!(error.contains("could not be read again (failed to fill whole buffer) while"), "{error}");
    }

    #[test]
    fn a_damaged_header_is_an_error() {
        let whole = file(&[1.0]);
        let long = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
        type Expected = fn(&SafeTensorError) -> bool;
        let rows: [(Vec<u8>, Expected); 6] = [
            (Vec::new(), |error| matches!(error, SafeTensorError::HeaderTooSmall)),
            (long(3), |error| matches!(error, SafeTensorError::InvalidHeaderLength)),
            (long(u64::MAX), |error| matches!(error, SafeTensorError::HeaderTooLarge)),
            (long(1), |error| matches!(error, SafeTensorError::InvalidHeaderDeserialization(_))),
            (whole[..whole.len() - 1].to_vec(), |error| {
                matches!(error, SafeTensorError::MetadataIncompleteBuffer)
            }),
            ([&whole[..], &[0]].concat(), |error| matches!(error, SafeTensorError::MetadataIncompleteBuffer)),
        ];
        for (bytes, expected) in rows {
            let (_file, content) = on_disk(&bytes);
            for content in [content, Content::Memory(bytes.clone().into())] {
                let error = content.header().unwrap_err();
                assert!(expected(&error), "{} bytes: {error}", bytes.len());
            }
        }
    }
}
