//! The house with guests that are nothing but what a test makes of them: no container, no Docker.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64};

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::super::*;
use super::*;
use crate::adapter::guest::{Guest, GuestLaunch, RestartPolicy};
use crate::adapter::job::Job;
use crate::adapter::{AdapterError, BoxFuture, Unit};
use crate::function::Function;
use crate::instance::{Exit, Launch};
use crate::runtime::Runtime;
use crate::storage::Disk;

/// Long enough for any step on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Starts actors, each of which takes a permit.
struct Stage {
    starts: Semaphore,
    actors: Mutex<Vec<Arc<Actor>>>,
}

/// A guest.
struct Actor {
    address: Mutex<Option<IpAddr>>,
    /// How often its address was asked for.
    asked: watch::Sender<usize>,
    ends: AtomicU64,
    ended: watch::Sender<bool>,
    /// A kill takes a permit.
    kills: Semaphore,
    killed: AtomicBool,
}

fn exit() -> Exit {
    Exit { reason: "ended".into(), last_words: String::new() }
}

impl Adapter for Stage {
    fn name(&self) -> &'static str {
        "stage"
    }

    fn prepare<'a>(&'a self, _: &'a Runtime, _: Option<&'a str>) -> BoxFuture<'a, Result<(), AdapterError>> {
        unreachable!("these are guests")
    }

    fn start<'a>(&'a self, _: &'a Launch) -> BoxFuture<'a, Result<Box<dyn Unit>, AdapterError>> {
        unreachable!("these are guests")
    }

    fn run_job<'a>(&'a self, _: &'a Job, _: mpsc::Sender<Bytes>) -> BoxFuture<'a, Result<i32, AdapterError>> {
        unreachable!("these are guests")
    }

    fn code_directory(&self, _: &Function) -> String {
        unreachable!("these are guests")
    }

    fn guests(&self) -> Option<&dyn Guests> {
        Some(self)
    }

    fn sweep(&self) -> BoxFuture<'_, Result<usize, AdapterError>> {
        Box::pin(async { Ok(0) })
    }
}

impl Guests for Stage {
    fn prepare<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), AdapterError>> {
        Box::pin(async { Ok(()) })
    }

    fn start<'a>(&'a self, _: &'a GuestLaunch) -> BoxFuture<'a, Result<Arc<dyn Guest>, AdapterError>> {
        Box::pin(async {
            self.starts.acquire().await.unwrap().forget();
            let actor = Arc::new(Actor {
                address: Mutex::default(),
                asked: watch::Sender::new(0),
                ends: AtomicU64::new(0),
                ended: watch::Sender::new(false),
                kills: Semaphore::new(0),
                killed: AtomicBool::new(false),
            });
            self.actors.lock().unwrap().push(Arc::clone(&actor));
            Ok(actor as Arc<dyn Guest>)
        })
    }

    fn usage(&self) -> BoxFuture<'_, Result<Vec<(String, f64)>, AdapterError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

impl Guest for Actor {
    fn address(&self) -> BoxFuture<'_, Result<IpAddr, AdapterError>> {
        Box::pin(async {
            self.asked.send_modify(|asked| *asked += 1);
            let address = *self.address.lock().unwrap();
            address.ok_or_else(|| AdapterError::Failed("it does not run".into()))
        })
    }

    fn exec<'a>(
        &'a self,
        _: &'a [String],
        _: Duration,
        _: mpsc::Sender<Piece>,
    ) -> BoxFuture<'a, Result<i64, ExecError>> {
        Box::pin(async { Ok(0) })
    }

    fn ended(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async {
            let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
            exit()
        })
    }

    fn ends(&self) -> u64 {
        self.ends.load(Ordering::SeqCst)
    }

    fn kill(&self) -> BoxFuture<'_, Exit> {
        Box::pin(async {
            self.kills.acquire().await.unwrap().forget();
            self.killed.store(true, Ordering::SeqCst);
            self.ended.send_replace(true);
            exit()
        })
    }
}

/// A house, and what it stands on.
struct Town {
    house: Arc<GuestHouse>,
    stage: Arc<Stage>,
    folder: tempfile::TempDir,
}

impl Town {
    /// With at most two copies of each guest and one call at a time in each; whoever is not called is idle.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stage = Arc::new(Stage { starts: Semaphore::new(0), actors: Mutex::default() });
        let options = GuestOptions {
            hostname: "h".into(),
            networks: Vec::new(),
            temporary: folder.path().to_owned(),
            maintenance_interval: LIMIT,
            inactive_threshold: Duration::ZERO,
            retry_attempts: 3,
            retry_delay: Duration::from_millis(1),
            ready_timeout: None,
            images: Vec::new(),
            concurrency: Some(1),
            instances: 2,
        };
        let adapter = Arc::clone(&stage) as Arc<dyn Adapter>;
        let storage: Arc<dyn Storage> = Arc::new(Disk::new());
        let cache = Arc::clone(&storage);
        let house = GuestHouse::new(Parts { options, adapter, storage, cache, client: Client::default() });
        Self { house, stage, folder }
    }

    /// One guest that is up.
    async fn guest(&self) -> (Arc<Entry>, Arc<Copy>, Arc<Actor>) {
        self.stage.starts.add_permits(1);
        self.house.create(order()).await.unwrap();
        let entry = self.house.find("r").unwrap();
        let copy = entry.first_copy().unwrap();
        (entry, copy, self.actor(0))
    }

    fn actor(&self, number: usize) -> Arc<Actor> {
        Arc::clone(&self.stage.actors.lock().unwrap()[number])
    }
}

fn order() -> Order {
    Order {
        id: "r".into(),
        image: "image".into(),
        entrypoint: String::new(),
        source: String::new(),
        destination: String::new(),
        output_directory: String::new(),
        variables: Vec::new(),
        start_command: String::new(),
        command: String::new(),
        cache_key: String::new(),
        timeout: 600,
        remove: false,
        cpus: 1.0,
        memory: 512,
        profile: Profile::V5,
        version: "v5".into(),
        restart: RestartPolicy::Always,
    }
}

fn call() -> GuestCall {
    GuestCall {
        id: "r".into(),
        order: None,
        method: http::Method::POST,
        path: "/".into(),
        headers: Vec::new(),
        body: Bytes::from_static(b"secret"),
        timeout: 1,
        logging: false,
        variables: Vec::new(),
    }
}

/// Somebody else, who listens where a guest was.
async fn stranger(address: SocketAddr) -> TcpListener {
    TcpListener::bind(address).await.unwrap()
}

#[tokio::test]
async fn r_151_after_a_restart_nobody_is_called_at_the_old_address() {
    let town = Town::new();
    let (entry, copy, actor) = town.guest().await;
    let stranger = stranger(SocketAddr::new(HERE, 0)).await;
    let spot = Spot { address: stranger.local_addr().unwrap(), ends: actor.ends() };
    copy.set_spot(spot);
    let soon = || Instant::now() + Duration::from_millis(50);
    assert!(town.house.listening(&entry, &copy, soon()).await.is_ok_and(|found| found == spot));
    // It ends and is started again, and has no address yet.
    actor.ends.fetch_add(1, Ordering::SeqCst);
    assert_eq!(copy.known_spot(), None);
    assert!(town.house.listening(&entry, &copy, soon()).await.is_err());
    assert_eq!(copy.lose_spot(), None, "it was given up, with the connections to it");
    // Or it ends when the call is already on its way.
    let lost = town.house.send(&entry, &copy, spot, &call(), Duration::ZERO).await.err().unwrap();
    assert!(matches!(lost.error, GuestError::Transport { number: 7, .. }), "{:?}", lost.error);
    assert!(futures_util::poll!(Box::pin(stranger.accept())).is_pending());
}

#[tokio::test]
async fn r_151_an_end_while_the_address_is_asked_for_makes_it_void() {
    let town = Town::new();
    let (_, copy, actor) = town.guest().await;
    *actor.address.lock().unwrap() = Some(HERE);
    let spot = copy.look(3000).await.unwrap();
    copy.set_spot(spot);
    assert_eq!(copy.known_spot(), Some(spot));
    actor.ends.fetch_add(1, Ordering::SeqCst);
    copy.set_spot(spot);
    assert_eq!(copy.known_spot(), None, "it was asked for before the end");
    assert_eq!(copy.lose_spot(), Some(spot.address), "so that its connections can be forgotten");
}

#[tokio::test]
async fn r_100_without_an_address_nothing_is_sent_again() {
    let town = Town::new();
    let (entry, copy, actor) = town.guest().await;
    let address = stranger(SocketAddr::new(HERE, 0)).await.local_addr().unwrap();
    let mut asked = actor.asked.subscribe();
    let (call, spot) = (call(), Spot { address, ends: actor.ends() });
    let calling = town.house.send(&entry, &copy, spot, &call, Duration::from_millis(500));
    let moving_in = async {
        // The first attempt was refused.
        asked.wait_for(|asked| *asked > 0).await.unwrap();
        stranger(address).await
    };
    let (result, stranger) = tokio::join!(calling, moving_in);
    let lost = result.err().unwrap();
    assert!(matches!(lost.error, GuestError::Transport { number: 7, .. }), "{:?}", lost.error);
    assert!(*actor.asked.borrow() > 1, "it was looked for again and again");
    assert!(futures_util::poll!(Box::pin(stranger.accept())).is_pending());
}

#[tokio::test]
async fn r_150_a_collection_that_is_interrupted_goes_on_to_its_end() {
    let town = Town::new();
    let (_, _, actor) = town.guest().await;
    let mut collecting = Box::pin(town.house.collect());
    assert!(futures_util::poll!(&mut collecting).is_pending());
    assert!(town.house.list().is_empty(), "it is out of the registry, so nobody else ends it");
    drop(collecting);
    actor.kills.add_permits(1);
    assert!(town.house.tasks.drain(LIMIT).await);
    assert!(actor.killed.load(Ordering::SeqCst));
    assert_eq!(std::fs::read_dir(town.folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn r_105_who_waits_for_one_more_container_waits_until_the_deadline() {
    let town = Town::new();
    let (entry, first, _) = town.guest().await;
    let later = |time| Instant::now() + time;
    let busy = town.house.place(&entry, later(LIMIT)).await.unwrap();
    // A second one is started, which takes longer; so do those who wait for that start.
    for _ in 0..2 {
        let late = town.house.place(&entry, later(Duration::from_millis(50)));
        let late = tokio::time::timeout(LIMIT, late).await.expect("it has a limit").err().unwrap();
        assert!(matches!(late, GuestError::RuntimeTimeout(Some(_))), "{late:?}");
    }
    // The start goes on, and whoever comes next gets what came of it.
    town.stage.starts.add_permits(1);
    let (_, place) = town.house.place(&entry, later(LIMIT)).await.unwrap();
    assert!(!Arc::ptr_eq(&place.copy, &first));
    assert_eq!(town.stage.actors.lock().unwrap().len(), 2);
    drop((busy, place));
}
