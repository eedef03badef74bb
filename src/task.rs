//! The owner of every task.
//!
//! The only place that may call `tokio::spawn`: a task that nobody tracks cannot be waited for at shutdown, and its
//! panic goes unseen. Tasks started here are drained by [`Tasks::drain`]; a panic is logged with the task's name.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::task::TaskTracker;

/// A set of tasks that end together.
#[derive(Debug, Clone, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Starts a task. Its panic is logged, not lost.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            if let Err(panic) = std::panic::AssertUnwindSafe(future).catch_unwind().await {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
                tracing::error!(task = name, "a task panicked, which is a defect of the executor: {text}");
            }
        });
    }

    /// Makes `future` finish even if the one who waits for it goes away: it then goes on as a task.
    ///
    /// Costs nothing beyond a box as long as the waiter stays.
    pub fn finish_always<T: Send + 'static>(
        &self,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> FinishAlways<T> {
        FinishAlways { tasks: self.clone(), name, future: Some(Box::pin(future)) }
    }

    /// Waits until all tasks have ended, at most `limit`; `false`: some still run.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.0.close();
        tokio::time::timeout(limit, self.0.wait()).await.is_ok()
    }

    /// How many run now.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// See [`Tasks::finish_always`].
pub struct FinishAlways<T: Send + 'static> {
    tasks: Tasks,
    name: &'static str,
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
}

impl<T: Send + 'static> Future for FinishAlways<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let future = self.future.as_mut().expect("polled after it was ready");
        let result = std::task::ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(result)
    }
}

impl<T: Send + 'static> Drop for FinishAlways<T> {
    fn drop(&mut self) {
        // During a panic the future may be the one that panicked: polling it again would be wrong.
        if let Some(future) = self.future.take()
            && !std::thread::panicking()
        {
            self.tasks.spawn(self.name, future.map(drop));
        }
    }
}
