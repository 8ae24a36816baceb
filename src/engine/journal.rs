//! The journal: what the scheduler was told and what it decided, a line of JSON each, to be run
//! again by `podium simulate --replay`. It holds ids, lengths and times, and never text.

use crate::base::Ns;
use crate::sched::{Action, Config, Event, digest};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// A line after the first, which is the scheduler's [`Config`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When, by the server's clock.
    pub now: Ns,
    /// What the scheduler was told.
    pub event: Event,
    /// The [`digest`] of what it decided.
    pub digest: u64,
}

/// A journal that is being written. When its disk is full it ends, and serving goes on.
pub struct Journal {
    file: Option<BufWriter<File>>,
}

impl Journal {
    /// Makes the file; one that is there already is kept, and is an error.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = File::create_new(path)?;
        Ok(Self { file: Some(BufWriter::new(file)) })
    }

    pub(super) fn begin(&mut self, config: &Config) {
        self.write(config);
    }

    pub(super) fn step(&mut self, now: Ns, event: Event, actions: &[Action]) {
        self.write(&Entry { now, event, digest: digest(actions) });
    }

    /// Hands what was written to the system.
    pub(super) fn flush(&mut self) {
        let flushed = self.file.as_mut().map(Write::flush);
        self.end_on_error(flushed.unwrap_or(Ok(())));
    }

    fn write(&mut self, line: &impl Serialize) {
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_writer(&mut *file, line).map_err(io::Error::from);
        let written = written.and_then(|()| file.write_all(b"\n"));
        self.end_on_error(written);
    }

    fn end_on_error(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::error!(%error, "the journal cannot be written and ends here");
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_ends_the_journal_and_nothing_else() {
        let file = File::options().write(true).open("/dev/full");
        let Ok(file) = file else { return };
        let mut journal = Journal { file: Some(BufWriter::new(file)) };
        journal.step(Ns(1), Event::Tick, &[]);
        journal.flush();
        assert!(journal.file.is_none());
        journal.step(Ns(2), Event::Tick, &[]);
    }

    #[test]
    fn an_old_journal_is_not_written_over() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Journal::create(file.path()).is_err());
    }
}
