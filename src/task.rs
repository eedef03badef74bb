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

#[cfg(test)]
mod tests {
    use std::io;
    use std::panic::AssertUnwindSafe;
    use std::sync::{Arc, Mutex};

    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// What was logged on this thread while `test` ran.
    async fn logged(test: impl Future<Output = ()>) -> String {
        #[derive(Clone, Default)]
        struct Sink(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::default();
        let made = sink.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || made.clone()).finish();
        let guard = tracing::subscriber::set_default(subscriber);
        test.await;
        drop(guard);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_result_and_no_task_is_made() {
        let tasks = Tasks::default();
        assert_eq!(tasks.finish_always("test", async { 7 }).await, 7);
        assert!(tasks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_must_finish_goes_on_after_its_waiter_left() {
        for polls in [0, 1] {
            let tasks = Tasks::default();
            let (go, wait) = oneshot::channel::<()>();
            let (done, finished) = oneshot::channel();
            let mut future = tasks.finish_always("test", async move {
                wait.await.unwrap();
                done.send(()).unwrap();
            });
            for _ in 0..polls {
                assert!(futures_util::poll!(&mut future).is_pending());
            }
            assert!(tasks.is_empty());
            drop(future);
            assert_eq!(tasks.len(), 1);
            go.send(()).unwrap();
            assert!(tasks.drain(LIMIT).await);
            finished.await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_logged_with_the_name_of_its_task() {
        let tasks = Tasks::default();
        let log = logged(async {
            tasks.spawn("with-str", async { panic!("just text") });
            tasks.spawn("with-string", async { panic!("number {}", 7) });
            tasks.spawn("with-else", async { std::panic::panic_any(7) });
            assert!(tasks.drain(LIMIT).await, "a task that panicked has ended");
        });
        let log = log.await;
        for (task, text) in [("with-str", "just text"), ("with-string", "number 7"), ("with-else", "unknown")]
        {
            let line = log.lines().find(|line| line.contains(&format!("task=\"{task}\"")));
            assert!(
                line.is_some_and(|line| line.contains(text) && line.contains("ERROR")),
                "{task} in {log}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_after_the_waiter_left_is_logged() {
        let tasks = Tasks::default();
        let log = logged(async {
            drop(tasks.finish_always("detached", async { panic!("late") }));
            assert!(tasks.drain(LIMIT).await);
        });
        let log = log.await;
        assert!(log.contains("detached") && log.contains("late"), "{log}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_panicked_is_not_run_again() {
        let tasks = Tasks::default();
        let waiter = async {
            tasks.finish_always("test", async { panic!("in front of its waiter") }).await;
        };
        assert!(AssertUnwindSafe(waiter).catch_unwind().await.is_err(), "the waiter hears it");
        assert!(tasks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn draining_ends_at_its_limit() {
        let tasks = Tasks::default();
        tasks.spawn("long", tokio::time::sleep(LIMIT + Duration::from_millis(1)));
        let begun = Instant::now();
        assert!(!tasks.drain(LIMIT).await, "one above the bound");
        assert_eq!(begun.elapsed().as_secs(), LIMIT.as_secs());
        assert_eq!(tasks.len(), 1, "it still runs and is still tracked");
        assert!(tasks.drain(LIMIT).await);
        assert!(
            begun.elapsed() < LIMIT + Duration::from_secs(1),
            "draining ends as soon as the last one does"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_spawned_while_draining_is_waited_for() {
        let tasks = Tasks::default();
        let more = tasks.clone();
        let begun = Instant::now();
        tasks.spawn("first", async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            more.spawn("second", tokio::time::sleep(Duration::from_secs(2)));
        });
        assert!(tasks.drain(LIMIT).await);
        assert_eq!(begun.elapsed().as_secs(), 3);
    }

    #[test]
    fn the_end_of_the_runtime_is_survived() {
        for mut builder in
            [tokio::runtime::Builder::new_current_thread(), tokio::runtime::Builder::new_multi_thread()]
        {
            let runtime = builder.build().unwrap();
            let tasks = Tasks::default();
            let call = tasks.finish_always("test", std::future::pending::<()>());
            let (begun, running) = std::sync::mpsc::channel();
            runtime.block_on(async {
                tasks.spawn("waiter", async move {
                    begun.send(()).unwrap();
                    call.await;
                });
                tokio::task::yield_now().await;
            });
            running.recv_timeout(LIMIT).unwrap();
            drop(runtime);
            assert!(tasks.is_empty());
        }
    }
}
