//! The one thread that reads what the cache does not know.
//!
//! It takes the first command that waits and whatever else waits already, and answers all
//! of them from one read transaction, which the writer neither disturbs nor waits for.
//! Values come first: what was found goes into the cache with the number of the last change
//! it could see (the cache module says why), and then to whoever asked. Other questions
//! follow; each is bounded (see `query.rs`), and so is how many of the longer ones wait here
//! at once (see [`super::SCANS`]), so no value waits long behind them.

use std::sync::Arc;

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::Guard;
use super::cache::{Cache, Known, News};
use super::query::View;
use super::schema::{classify, read_sequence};
use crate::state::{Entity, StoreError, Versioned};

/// How many commands may share one transaction. An open read transaction keeps the log
/// from being reused, so it should be short.
const BATCH: usize = 64;

type Answer = Result<Option<Versioned>, StoreError>;

/// A read on its way.
pub(super) struct Read {
    pub(super) entity: Entity,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A question about something else than a value. Is given the view, or why there is none, and
/// answers whoever asked.
pub(super) type Question = Box<dyn FnOnce(Result<&View<'_>, StoreError>) + Send>;

/// What the reader can be told.
pub(super) enum Command {
    Read(Read),
    Ask(Question),
    /// Take nothing more, finish what is queued, end.
    Close,
    /// Lets a test hold the reader up between reading and telling the cache.
    #[cfg(test)]
    Pause(Box<dyn FnOnce() + Send>),
}

/// The reader thread's belongings. The guard is dropped last.
pub(super) struct Reader {
    connection: Connection,
    reads: Vec<Read>,
    questions: Vec<Question>,
    commands: mpsc::Receiver<Command>,
    cache: Arc<Cache>,
    #[cfg(test)]
    pause: Option<Box<dyn FnOnce() + Send>>,
    _guard: Guard,
}

impl Reader {
    pub(super) fn new(
        connection: Connection,
        commands: mpsc::Receiver<Command>,
        cache: Arc<Cache>,
        guard: Guard,
    ) -> Self {
        Self {
            connection,
            reads: Vec::with_capacity(BATCH),
            questions: Vec::new(),
            commands,
            cache,
            #[cfg(test)]
            pause: None,
            _guard: guard,
        }
    }

    /// Serves until told to close, or until all senders are gone.
    pub(super) fn run(mut self) {
        while let Some(first) = self.commands.blocking_recv() {
            self.gather(first);
            self.serve();
        }
    }

    fn gather(&mut self, first: Command) {
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Read(read) => self.reads.push(read),
                Command::Ask(question) => self.questions.push(question),
                Command::Close => self.commands.close(),
                #[cfg(test)]
                Command::Pause(pause) => self.pause = Some(pause),
            }
            if self.reads.len() + self.questions.len() >= BATCH {
                break;
            }
            next = self.commands.try_recv().ok();
        }
    }

    fn serve(&mut self) {
        if self.reads.is_empty() && self.questions.is_empty() {
            return;
        }
        if let Err(error) = self.answer() {
            let (reads, cause) = (self.reads.len() + self.questions.len(), &error as &dyn std::error::Error);
            tracing::warn!(reads, error = cause, "state was not read");
            for read in self.reads.drain(..) {
                let _ = read.reply.send(Err(error.clone()));
            }
            for question in self.questions.drain(..) {
                question(Err(error.clone()));
            }
        }
    }

    /// Answers everything from one transaction; those that are left are to be told of the error.
    fn answer(&mut self) -> Result<(), StoreError> {
        let failed = |error| classify("reading state", error);
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Deferred).map_err(failed)?;
        let stamp = read_sequence(&transaction).map_err(failed)?;
        let view = View { transaction: &transaction, stamp };
        let answers: Vec<_> = self.reads.iter().map(|read| view.value(&read.entity)).collect();
        #[cfg(test)]
        if let Some(pause) = self.pause.take() {
            pause();
        }
        let found = self.reads.iter().zip(&answers);
        self.cache.learn(found.filter_map(|(read, answer)| news(read, answer, stamp)));
        for (read, answer) in self.reads.drain(..).zip(answers) {
            // Fails if the caller has left, which is the caller's right.
            let _ = read.reply.send(answer);
        }
        for question in self.questions.drain(..) {
            question(Ok(&view));
        }
        transaction.commit().map_err(failed)
    }
}

/// A value is stamped with its own version, the last change to it; an absence with the
/// last change there was.
fn news(read: &Read, answer: &Answer, seen: u64) -> Option<News> {
    let entity = read.entity.clone();
    match answer {
        Ok(Some(value)) => Some(News { entity, known: Known::Present(value.clone()), stamp: value.version }),
        Ok(None) => Some(News { entity, known: Known::Absent, stamp: seen }),
        Err(error) => {
            tracing::warn!(error = error as &dyn std::error::Error, "state was not read");
            None
        }
    }
}
