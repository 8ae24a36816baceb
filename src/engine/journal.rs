//! The journal: a JSON line for each scheduler event with a digest of the decisions, for
//! `podium simulate --replay`. It holds ids, lengths and times, never text.

use crate::base::Ns;
use crate::sched::{Action, Config, Event, digest};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// A line of the journal. The first line is the scheduler's [`Config`] instead.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The server's time of the event.
    pub now: Ns,
    /// The event.
    pub event: Event,
    /// The [`digest`] of the scheduler's actions.
    pub digest: u64,
}

/// A journal that is being written. After a write error it ends, and serving continues.
pub struct Journal {
    file: Option<BufWriter<File>>,
}

impl Journal {
    /// Creates the file. A file that already exists is an error.
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

    /// Flushes the buffer to the file.
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
            tracing::error!(%error, "the journal ends: it cannot be written");
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_ends_only_the_journal() {
        let file = File::options().write(true).open("/dev/full");
        let Ok(file) = file else { return };
        let mut journal = Journal { file: Some(BufWriter::new(file)) };
        journal.step(Ns(1), Event::Tick, &[]);
        journal.flush();
        assert!(journal.file.is_none());
        journal.step(Ns(2), Event::Tick, &[]);
    }

    #[test]
    fn an_existing_journal_is_not_overwritten() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Journal::create(file.path()).is_err());
    }
}
