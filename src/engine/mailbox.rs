//! A crossbeam channel whose receiver parks its thread as soon as the channel is empty.
//!
//! crossbeam's own `recv` spins and yields for some microseconds first. Batches take longer than that, and the spinning
//! takes CPU time from the decoding of requests: without it the server answers a tenth more requests
//! (`benches/overhead.rs`).

use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender, TryRecvError, unbounded};
use crossbeam_utils::sync::{Parker, Unparker};
use std::time::Instant;

/// Makes both ends. The channel is unbounded; the senders bound it (`Limits::jobs_max`, a lane's depth).
pub(super) fn mailbox<T>() -> (Post<T>, Mailbox<T>) {
    let ((sender, receiver), parker) = (unbounded(), Parker::new());
    let unparker = parker.unparker().clone();
    (Post { sender: Some(sender), unparker }, Mailbox { receiver, parker })
}

/// The sending end. Clones send to the same mailbox.
pub(super) struct Post<T> {
    /// Always `Some`, except inside `drop`.
    sender: Option<Sender<T>>,
    unparker: Unparker,
}

impl<T> Post<T> {
    /// Sends, and wakes the receiver if it sleeps.
    ///
    /// # Errors
    /// Returns the message if the receiver has been dropped.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        self.sender.as_ref().expect("the sender is there until it is dropped").send(message)?;
        self.unparker.unpark();
        Ok(())
    }
}

impl<T> Clone for Post<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), unparker: self.unparker.clone() }
    }
}

impl<T> Drop for Post<T> {
    fn drop(&mut self) {
        // Drop the sender before waking, so that the receiver sees the channel closed.
        self.sender = None;
        self.unparker.unpark();
    }
}

/// The receiving end, used by one thread.
pub(super) struct Mailbox<T> {
    receiver: Receiver<T>,
    parker: Parker,
}

impl<T> Mailbox<T> {
    /// Takes a message without waiting.
    pub fn try_recv(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }

    /// Waits for a message, at most until `until`.
    ///
    /// # Errors
    /// `Timeout`; or `Disconnected` if all senders are dropped and the channel is empty.
    pub fn recv_until(&self, until: Option<Instant>) -> Result<T, RecvTimeoutError> {
        let mut time_is_up = false;
        loop {
            match self.receiver.try_recv() {
                Ok(message) => return Ok(message),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) if time_is_up => return Err(RecvTimeoutError::Timeout),
                Err(TryRecvError::Empty) => match until {
                    None => self.parker.park(),
                    Some(until) => {
                        self.parker.park_deadline(until);
                        time_is_up = until.elapsed() > std::time::Duration::ZERO;
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn messages_arrive_in_order_and_then_the_end() {
        let (post, mailbox) = mailbox();
        let other = post.clone();
        let sender = thread::spawn(move || (0..1_000).for_each(|n| other.send(n).unwrap()));
        for n in 0..1_000 {
            assert_eq!(mailbox.recv_until(None), Ok(n));
        }
        sender.join().unwrap();
        let waiter = thread::spawn(move || mailbox.recv_until(None));
        drop(post);
        assert_eq!(waiter.join().unwrap(), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_wait_ends_in_time() {
        let (_post, mailbox) = mailbox::<()>();
        let soon = crate::engine::Clock::start().instant(Duration::from_millis(5).into());
        assert_eq!(mailbox.recv_until(Some(soon)), Err(RecvTimeoutError::Timeout));
        assert!(mailbox.try_recv().is_none());
    }

    #[test]
    fn sending_without_a_receiver_returns_the_message() {
        let (post, mailbox) = mailbox();
        drop(mailbox);
        assert_eq!(post.send(7).unwrap_err().into_inner(), 7);
    }
}
