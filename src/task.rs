//! The owner of every task.
//!
//! The only place that may call `tokio::spawn`: a task that nobody tracks cannot be waited for at shutdown, and its
//! panic goes unseen. Tasks started here are drained by [`Tasks::drain`]; a panic is logged with the task's name.
//!
//! Short blocking work that comes often has a [`Lane`]: with a thread for each piece, pieces on the same folder do
//! little but wait for its lock and wake each other.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::oneshot;
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

/// Blocking work, done in the order it came by one thread, which stays as long as there is some. Its queue is as long as
/// its callers let it become. Cheap to clone.
#[derive(Clone, Default)]
pub struct Lane(Arc<Mutex<Queue>>);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// A thread is on it.
    busy: bool,
}

impl Lane {
    /// Does `work`. `None`: it panicked, or the program ends; then it was dropped, maybe without having run.
    ///
    /// # Cancel safety
    /// The work is done all the same.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (told, result) = oneshot::channel();
        let job = move || drop(told.send(work()));
        let idle = {
            let mut queue = self.lock();
            queue.jobs.push_back(Box::new(job));
            !std::mem::replace(&mut queue.busy, true)
        };
        if idle {
            // Made here, so that it is dropped, and the jobs with it, also where the thread never starts.
            let shift = Shift { lane: self.clone(), over: false };
            tokio::task::spawn_blocking(move || shift.work());
        }
        result.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; none: the thread goes.
    fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        let job = queue.jobs.pop_front();
        queue.busy = job.is_some();
        job
    }
}

/// A thread's time on a lane.
struct Shift {
    lane: Lane,
    /// The queue was empty; what comes later has a shift of its own.
    over: bool,
}

impl Shift {
    fn work(mut self) {
        while let Some(job) = self.lane.next() {
            // Who waits for it hears of the panic; the hook has told of it.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
        self.over = true;
    }
}

impl Drop for Shift {
    fn drop(&mut self) {
        if !self.over {
            // The program ends, and nobody would ever come for them.
            let left = std::mem::take(&mut *self.lane.lock());
            drop(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

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

    #[tokio::test]
    async fn a_lane_does_one_thing_at_a_time_in_order() {
        let lane = Lane::default();
        let (done, at_once) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(())));
        let jobs = (0..100).map(|number| {
            let (done, at_once) = (Arc::clone(&done), Arc::clone(&at_once));
            lane.run(move || {
                let _alone = at_once.try_lock().expect("no other one runs");
                done.lock().unwrap().push(number);
                number
            })
        });
        let results = futures_util::future::join_all(jobs).await;
        assert_eq!(results, (0..100).map(Some).collect::<Vec<_>>());
        assert_eq!(*done.lock().unwrap(), (0..100).collect::<Vec<_>>());
        assert_eq!(lane.run(|| 1).await, Some(1), "it starts again when it was empty");
    }

    #[tokio::test]
    async fn a_lane_survives_a_panic_and_a_caller_that_leaves() {
        let lane = Lane::default();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (told, ran) = oneshot::channel();
        let blocked = lane.run(move || gate.recv().is_ok());
        let panics = lane.run(|| panic!("in the lane"));
        let mut left = Box::pin(lane.run(move || told.send(())));
        let mut blocked = Box::pin(blocked);
        assert!(futures_util::poll!(&mut blocked).is_pending());
        assert!(futures_util::poll!(&mut left).is_pending());
        drop(left);
        open.send(()).unwrap();
        assert_eq!(blocked.await, Some(true));
        assert_eq!(panics.await, None::<()>);
        ran.await.unwrap();
    }

    #[test]
    fn what_waits_in_a_lane_is_dropped_with_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
        let lane = Lane::default();
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let (begun, running) = std::sync::mpsc::channel();
        let token = Arc::new(());
        let held = Arc::clone(&token);
        runtime.block_on(async {
            // Takes the only thread, so that the lane's never starts.
            drop(tokio::task::spawn_blocking(move || {
                begun.send(()).unwrap();
                gate.recv()
            }));
            let mut waits = Box::pin(lane.run(move || drop(held)));
            assert!(futures_util::poll!(&mut waits).is_pending());
        });
        running.recv_timeout(LIMIT).unwrap();
        runtime.shutdown_background();
        open.send(()).unwrap();
        let end = std::time::Instant::now() + LIMIT;
        while Arc::strong_count(&token) > 1 && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(Arc::strong_count(&token), 1);
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
