//! Random lives of a ledger: a model of the driver carries out its decisions in any order and as late as it likes.

use std::collections::{HashMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// One thing that happens. Numbers choose among what is there, modulo how much that is.
#[derive(Debug, Clone, Copy)]
enum Step {
    Add(FunctionLimits),
    Acquire(usize),
    Abandon(usize),
    CarryOut(usize),
    Ready(usize),
    Fail(usize, StartPart),
    Release(usize),
    /// A call passes its deadline.
    Late(usize),
    /// A late call ends after all.
    Resume(usize),
    /// Its lease's holder gives an instance up.
    Condemn(usize),
    /// An instance dies by itself.
    Die(usize),
    Ended(usize),
    Retire(usize),
    Tick(Duration),
}

fn limits() -> impl Strategy<Value = FunctionLimits> {
    (1u32..4, 0usize..3, 1usize..4, 1u64..20).prop_map(|(concurrency, min, max, warm)| FunctionLimits {
        concurrency,
        min: min.min(max),
        max,
        keep_warm: Duration::from_secs(warm),
    })
}

fn step() -> impl Strategy<Value = Step> {
    let part = prop_oneof![
        3 => Just(StartPart::Adapter),
        1 => Just(StartPart::Function),
        1 => Just(StartPart::Runtime),
    ];
    prop_oneof![
        1 => limits().prop_map(Step::Add),
        16 => (0usize..8).prop_map(Step::Acquire),
        3 => (0usize..50).prop_map(Step::Abandon),
        20 => (0usize..50).prop_map(Step::CarryOut),
        10 => (0usize..50).prop_map(Step::Ready),
        4 => ((0usize..50), part).prop_map(|(i, part)| Step::Fail(i, part)),
        14 => (0usize..50).prop_map(Step::Release),
        3 => (0usize..50).prop_map(Step::Late),
        3 => (0usize..50).prop_map(Step::Resume),
        2 => (0usize..50).prop_map(Step::Condemn),
        2 => (0usize..50).prop_map(Step::Die),
        8 => (0usize..50).prop_map(Step::Ended),
        1 => (0usize..8).prop_map(Step::Retire),
        4 => (0u64..12_000).prop_map(|ms| Step::Tick(Duration::from_millis(ms))),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Decided, not carried out.
    Ordered,
    Starting,
    Ready,
    Ending,
}

struct Sim {
    key: FunctionKey,
    life: Life,
    /// The ledger has said so.
    stop_decided: bool,
    /// The driver has heard so.
    stop_heard: bool,
}

struct Model {
    ledger: Ledger<InstanceId>,
    limits: Limits,
    now: Instant,
    keys: Vec<FunctionKey>,
    /// In order of start; an id leaves when it has failed or ended.
    sims: Vec<(InstanceId, Sim)>,
    waiting: HashMap<FunctionKey, VecDeque<Ticket>>,
    /// Callers that went away while their grant was on its way.
    left: HashSet<Ticket>,
    /// Decisions that are not carried out yet.
    inbox: Vec<Action<InstanceId>>,
    leases: Vec<(FunctionKey, InstanceId)>,
    /// Leases of calls that are past their deadline.
    late: Vec<(FunctionKey, InstanceId)>,
    queued: usize,
    resolved: usize,
}

impl Model {
    fn new(limits: Limits) -> Self {
        Self {
            ledger: Ledger::new(limits),
            limits,
            now: Instant::now(),
            keys: Vec::new(),
            sims: Vec::new(),
            waiting: HashMap::new(),
            left: HashSet::new(),
            inbox: Vec::new(),
            leases: Vec::new(),
            late: Vec::new(),
            queued: 0,
            resolved: 0,
        }
    }

    fn sim(&mut self, id: InstanceId) -> Option<&mut Sim> {
        self.sims.iter_mut().find(|(i, _)| *i == id).map(|(_, sim)| sim)
    }

    /// The instances that `test` likes; the step's number chooses among them.
    fn choose(&self, number: usize, test: impl Fn(&Sim) -> bool) -> Option<(FunctionKey, InstanceId)> {
        let fitting: Vec<_> =
            self.sims.iter().filter(|(_, sim)| test(sim)).map(|(id, sim)| (sim.key, *id)).collect();
        (!fitting.is_empty()).then(|| fitting[number % fitting.len()])
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(limits) if self.keys.len() < 5 => {
                let key = self.ledger.add(limits);
                self.keys.push(key);
                self.waiting.insert(key, VecDeque::new());
            }
            Step::Acquire(n) => self.acquire(self.keys[n % self.keys.len()]),
            Step::Abandon(n) => self.abandon(n),
            Step::CarryOut(n) if !self.inbox.is_empty() => {
                let action = self.inbox.remove(n % self.inbox.len());
                self.carry_out(&action);
            }
            Step::Ready(n) => {
                if let Some((key, id)) = self.choose(n, |sim| sim.life == Life::Starting) {
                    self.sim(id).unwrap().life = Life::Ready;
                    self.ledger.ready(key, id, id, self.now);
                }
            }
            Step::Fail(n, part) => {
                if let Some((key, id)) = self.choose(n, |sim| sim.life == Life::Starting) {
                    self.fail(key, id, part);
                }
            }
            Step::Release(n) if !self.leases.is_empty() => {
                let (key, id) = self.leases.swap_remove(n % self.leases.len());
                self.ledger.release(key, id, self.now);
            }
            Step::Late(n) if !self.leases.is_empty() => {
                let (key, id) = self.leases.swap_remove(n % self.leases.len());
                self.late.push((key, id));
                self.ledger.suspend(key, id, self.now);
            }
            Step::Resume(n) if !self.late.is_empty() => {
                let (key, id) = self.late.swap_remove(n % self.late.len());
                self.ledger.resume(key, id, self.now);
                self.ledger.release(key, id, self.now);
            }
            Step::Condemn(n) if !self.late.is_empty() => {
                let (key, id) = self.late.swap_remove(n % self.late.len());
                self.end(key, id);
                self.ledger.release(key, id, self.now);
            }
            Step::Add(_)
            | Step::CarryOut(_)
            | Step::Release(_)
            | Step::Late(_)
            | Step::Resume(_)
            | Step::Condemn(_) => {}
            Step::Die(n) => {
                if let Some((key, id)) = self.choose(n, |sim| sim.life == Life::Ready) {
                    self.end(key, id);
                }
            }
            Step::Ended(n) => {
                // What was told to stop ends too, as the driver does it: no more calls, then nothing left.
                let ending =
                    |sim: &Sim| sim.life == Life::Ending || (sim.stop_heard && sim.life == Life::Ready);
                if let Some((key, id)) = self.choose(n, ending) {
                    self.end(key, id);
                    self.sims.retain(|(i, _)| *i != id);
                    self.ledger.ended(key, id, self.now);
                }
            }
            Step::Retire(n) => self.ledger.retire(self.keys[n % self.keys.len()], self.now),
            Step::Tick(passed) => {
                self.now += passed;
                self.ledger.tick(self.now);
            }
        }
        self.hear();
        self.check(step);
    }

    fn acquire(&mut self, key: FunctionKey) {
        match self.ledger.acquire(key, self.now) {
            Acquire::Granted(id, handle) => {
                assert_eq!(id, handle);
                assert!(self.waiting[&key].is_empty(), "overtook those who wait");
                self.leases.push((key, id));
            }
            Acquire::Queued(ticket) => {
                self.queued += 1;
                self.waiting.get_mut(&key).unwrap().push_back(ticket);
            }
            Acquire::Refused(Refusal::QueueFull(n)) => assert_eq!(n, self.limits.queue),
            Acquire::Refused(Refusal::CannotStart(_, after)) => {
                assert!(!after.is_zero() && after <= LONGEST_BACKOFF);
            }
            Acquire::Refused(Refusal::Gone) => assert!(!self.ledger.knows(key)),
        }
    }

    /// A caller goes away, be it still in the queue or with its grant on the way.
    fn abandon(&mut self, number: usize) {
        let granted = self.inbox.iter().filter_map(|action| match action {
            Action::Grant(ticket, key, ..) if !self.left.contains(ticket) => Some((*key, *ticket)),
            _ => None,
        });
        let in_queue =
            self.keys.iter().flat_map(|key| self.waiting[key].iter().map(|ticket| (*key, *ticket)));
        let all: Vec<_> = in_queue.chain(granted).collect();
        let Some((key, ticket)) = all.get(number % all.len().max(1)).copied() else { return };
        let queue = self.waiting.get_mut(&key).unwrap();
        if let Some(at) = queue.iter().position(|t| *t == ticket) {
            queue.remove(at);
            self.resolved += 1;
        } else {
            self.left.insert(ticket);
        }
        self.ledger.abandon(key, ticket, self.now);
    }

    fn fail(&mut self, key: FunctionKey, id: InstanceId, part: StartPart) {
        self.sims.retain(|(i, _)| *i != id);
        let failure = StartFailure { part, message: String::new(), stack: String::new() };
        self.ledger.failed(key, id, &Arc::new(failure), self.now);
    }

    fn end(&mut self, key: FunctionKey, id: InstanceId) {
        if let Some(sim) = self.sim(id)
            && sim.life == Life::Ready
        {
            sim.life = Life::Ending;
            self.ledger.condemn(key, id, self.now);
        }
    }

    fn carry_out(&mut self, action: &Action<InstanceId>) {
        match *action {
            Action::Start(_, id) => self.sim(id).unwrap().life = Life::Starting,
            Action::Grant(ticket, key, id, handle) => {
                assert_eq!(id, handle);
                if self.left.remove(&ticket) {
                    self.ledger.release(key, id, self.now);
                } else {
                    self.leases.push((key, id));
                }
            }
            Action::Refuse(..) => {}
            Action::Stop(id) => match self.sim(id).map(|sim| (sim.key, sim.life)) {
                Some((_, Life::Ordered)) => self.inbox.push(Action::Stop(id)),
                Some((key, Life::Starting)) => self.fail(key, id, StartPart::Adapter),
                Some((_, Life::Ready | Life::Ending)) => self.sim(id).unwrap().stop_heard = true,
                None => {}
            },
        }
    }

    /// Takes note of what was decided, and checks that each decision is one that may be made.
    fn hear(&mut self) {
        for action in self.ledger.take_actions() {
            match &action {
                Action::Start(key, id) => {
                    let sim = Sim { key: *key, life: Life::Ordered, stop_decided: false, stop_heard: false };
                    self.sims.push((*id, sim));
                }
                Action::Grant(ticket, key, id, _) => {
                    let first = self.waiting.get_mut(key).unwrap().pop_front();
                    assert_eq!(first, Some(*ticket), "not the first in the queue");
                    assert_eq!(self.sim(*id).unwrap().life, Life::Ready, "not ready");
                    self.resolved += 1;
                }
                Action::Refuse(ticket, _) => {
                    let queue = self.waiting.values_mut().find(|queue| queue.contains(ticket)).unwrap();
                    queue.retain(|t| t != ticket);
                    self.resolved += 1;
                }
                Action::Stop(id) => {
                    let sim = self.sim(*id).expect("stops what is gone");
                    assert!(!std::mem::replace(&mut sim.stop_decided, true), "stopped twice");
                    assert!(!self.running().any(|running| running == id), "stopped while it runs a call");
                }
            }
            self.inbox.push(action);
        }
    }

    /// The instance of every call that runs, late ones included.
    fn running(&self) -> impl Iterator<Item = &InstanceId> {
        self.leases.iter().chain(&self.late).map(|(_, id)| id)
    }

    /// Calls that the ledger must count on an instance: those that run and those whose grant is on its way.
    fn calls(&self, id: InstanceId) -> u32 {
        let on_the_way =
            self.inbox.iter().filter(|a| matches!(a, Action::Grant(_, _, i, _) if *i == id)).count();
        (self.running().filter(|leased| **leased == id).count() + on_the_way) as u32
    }

    fn check(&self, after: Step) {
        let ledger = &self.ledger;
        assert!(ledger.total <= self.limits.instances, "{after:?}: more than the global limit");
        assert_eq!(
            ledger.total,
            ledger.functions.values().map(|f| f.instances.len()).sum::<usize>(),
            "{after:?}"
        );
        assert_eq!(ledger.total, self.sims.len(), "{after:?}: the ledger forgot an instance or kept one");
        let starved = ledger.functions.values().filter(|f| f.starved).count();
        assert_eq!(ledger.starved, starved, "{after:?}: the count of the starved is wrong");
        for key in &self.keys {
            match ledger.functions.get(key) {
                Some(f) => self.check_function(after, *key, f),
                None => assert!(self.waiting[key].is_empty(), "{after:?}: forgot those who wait"),
            }
        }
        let all = || ledger.functions.values();
        let ending = all().flat_map(|f| &f.instances).filter(|r| !r.phase.is_live()).count();
        let evictable = all()
            .filter(|f| f.waiting.is_empty())
            .flat_map(|f| &f.instances)
            .any(|record| record.phase.idle_since().is_some());
        assert!(
            starved == 0 || ledger.total == self.limits.instances,
            "{after:?}: starved while there is room"
        );
        assert!(ending >= starved || !evictable, "{after:?}: starved while others are idle");
    }

    fn check_function(&self, after: Step, key: FunctionKey, f: &FunctionState<InstanceId>) {
        assert_eq!(f.waiting, self.waiting[&key], "{after:?}: the queue is not the callers' order");
        assert!(f.waiting.len() <= self.limits.queue, "{after:?}: the queue is too long");
        assert!(f.live() <= f.limits.max, "{after:?}: more live instances than max");
        for record in &f.instances {
            let in_flight = match record.phase {
                Phase::Starting => 0,
                Phase::Ready { in_flight, .. } => {
                    let free = in_flight < f.limits.concurrency && record.late == 0;
                    assert!(!free || f.waiting.is_empty(), "{after:?}: somebody waits while a place is free");
                    in_flight
                }
                Phase::Draining { in_flight } => {
                    assert!(in_flight > 0, "{after:?}: drains although it is idle");
                    in_flight
                }
                Phase::Stopping => continue,
            };
            assert!(in_flight <= f.limits.concurrency, "{after:?}: more calls than concurrency");
            assert_eq!(in_flight, self.calls(record.id), "{after:?}: wrong count of calls");
        }
        assert!(!f.starved || (!f.waiting.is_empty() && f.live() == 0), "{after:?}: starved without need");
        assert!(
            f.waiting.is_empty() || f.live() > 0 || f.starved,
            "{after:?}: nobody will serve those who wait"
        );
        if f.retired && f.waiting.is_empty() {
            assert!(!f.instances.is_empty(), "{after:?}: a retired function without anything stays");
            let ends = |phase: Phase| matches!(phase, Phase::Draining { .. } | Phase::Stopping);
            assert!(
                f.instances.iter().all(|r| ends(r.phase)),
                "{after:?}: a retired function's instance goes on"
            );
        }
    }

    /// From now on every start succeeds and every call and instance ends.
    fn drain(&mut self) {
        for _ in 0..100 {
            let mut patience = 10_000;
            while !self.inbox.is_empty() {
                patience -= 1;
                assert!(patience > 0, "decides without end: {:?}", self.inbox);
                self.step(Step::CarryOut(0));
            }
            for _ in 0..self.sims.len() {
                self.step(Step::Ready(0));
                self.step(Step::Ended(0));
            }
            while !self.leases.is_empty() {
                self.step(Step::Release(0));
            }
            while !self.late.is_empty() {
                self.step(Step::Resume(0));
            }
            self.step(Step::Tick(Duration::from_secs(1)));
        }
        assert_eq!(self.queued, self.resolved, "a caller was never answered");
        assert!(self.waiting.values().all(VecDeque::is_empty), "somebody still waits");
        for f in self.ledger.functions.values() {
            assert!(!f.retired, "a retired function is still there");
            assert_eq!(f.live(), f.instances.len(), "an instance never ended");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_invariants_hold_and_everybody_is_answered(
        instances in 1usize..7,
        queue in 1usize..7,
        functions in prop::collection::vec(limits(), 1..4),
        steps in prop::collection::vec(step(), 0..250),
    ) {
        let mut model = Model::new(Limits { instances, queue, back_off: true });
        for limits in functions {
            model.step(Step::Add(limits));
        }
        for step in steps {
            model.step(step);
        }
        model.drain();
    }
}
