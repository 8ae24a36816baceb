//! Progress of long work: a bar on a terminal, else a line for each twentieth of a stage.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

/// The progress display of a command.
#[derive(Default)]
pub(super) struct Shown {
    stage: String,
    of: usize,
    bar: Option<ProgressBar>,
    twentieths: usize,
}

impl Shown {
    /// Shows the progress of a stage, with a note that may be empty.
    pub fn show(&mut self, stage: &str, done: usize, of: usize, note: &str) {
        if stage != self.stage || of != self.of || done == 0 {
            self.end();
            (self.stage, self.of, self.twentieths) = (stage.to_owned(), of, usize::MAX);
            let style = "{prefix:>7} {bar:30} {human_pos}/{human_len} {eta} {msg}";
            let style = ProgressStyle::with_template(style).expect("the template is one");
            let bar = || ProgressBar::new(of as u64).with_style(style).with_prefix(stage.to_owned());
            self.bar = std::io::stderr().is_terminal().then(bar);
        }
        match &self.bar {
            Some(bar) => {
                bar.set_message(note.to_owned());
                bar.set_position(done as u64);
            }
            None => {
                let twentieths = 20 * done / of.max(1);
                if twentieths != self.twentieths {
                    self.twentieths = twentieths;
                    eprintln!("{stage}: {done} of {of} {note}");
                }
            }
        }
    }

    /// Leaves the last state on the screen.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
    }
}
