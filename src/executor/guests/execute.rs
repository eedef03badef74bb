//! One call of a guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout_at};

use super::GuestHouse;
use super::entry::{Copy, Entry, InFlight, Phase, Place, Spot, unix_now};
use super::types::{Executed, GuestCall, GuestError, Rest};
use crate::execution::Body;
use crate::pool::guest_alive;
use crate::transport::{Incoming, Outgoing, Target, TransportError};

/// The port of the contract.
const PORT: u16 = 3000;
/// How long one round of waiting for a listener takes before the address is asked for again: a restart may change it.
const LISTEN_ROUND: Duration = Duration::from_millis(500);
/// Between two attempts to create or to find what is not there yet.
const PAUSE: Duration = Duration::from_millis(100);

/// What a call holds until its answer is complete.
struct Held {
    _flight: InFlight,
    _slot: Option<OwnedSemaphorePermit>,
    place: Place,
}

impl GuestHouse {
    /// Goes on to its end also when the caller leaves.
    pub async fn execute(self: &Arc<Self>, call: GuestCall) -> Result<Executed, GuestError> {
        let house = Arc::clone(self);
        self.tasks.finish_always("call a guest", async move { house.run(call).await }).await
    }

    async fn run(self: &Arc<Self>, call: GuestCall) -> Result<Executed, GuestError> {
        let begun = Instant::now();
        let patience = Duration::from_secs(u64::try_from(call.timeout).unwrap_or(0));
        let separate = self.parts.options.ready_timeout;
        let ready_by = begun + separate.unwrap_or(patience);
        let flight = self.arrive(&call, ready_by).await?;
        //
        let (limit, listen_by) = match separate {
            Some(_) => (patience, ready_by),
            None => {
                let left = patience.saturating_sub(begun.elapsed());
                (left, Instant::now() + left)
            }
        };
        if limit.is_zero() {
            return Err(GuestError::RuntimeTimeout(None));
        }
        let (started, start_time) = (Instant::now(), unix_now());
        let mut others = self.parts.options.instances;
        loop {
            let (slot, place) = self.place(&flight.0, listen_by).await?;
            let sent = async {
                let spot = self.listening(&flight.0, &place.copy, listen_by).await?;
                self.send(&flight.0, &place.copy, spot, &call, limit).await
            };
            let lost = match sent.await {
                Ok(incoming) => {
                    let held = Held { _flight: flight, _slot: slot, place };
                    return Ok(executed(incoming, held, started, start_time));
                }
                Err(lost) => lost,
            };
            let discarded = lost.dead && self.discard(&flight.0, &place.copy);
            if !(discarded && lost.unsent && others > 0) {
                return Err(lost.error);
            }
            others -= 1;
        }
    }

    /// Takes a copy that has ended out of the choice and removes what is left of it. `false`: it stays.
    fn discard(&self, entry: &Entry, copy: &Arc<Copy>) -> bool {
        let discarded = entry.discard(copy);
        if discarded {
            if let Some(address) = copy.lose_spot() {
                self.parts.client.forget(address);
            }
            tracing::info!(runtime = %entry.order.id, "one container of a runtime ended; the others go on");
            let copy = Arc::clone(copy);
            self.tasks.spawn("remove a copy", async move { copy.destroy().await });
        }
        discarded
    }

    /// Discards the copy as soon as it ends: idle as it is, it would be the first choice of every call. The last one stays,
    /// but not its address, which may soon be another container's.
    pub(super) fn watch(self: &Arc<Self>, entry: &Arc<Entry>, copy: &Arc<Copy>) {
        let (house, entry, copy) = (Arc::clone(self), Arc::clone(entry), Arc::clone(copy));
        self.tasks.spawn("watch a copy", async move {
            copy.guest.ended().await;
            if !house.discard(&entry, &copy)
                && let Some(address) = copy.lose_spot()
            {
                house.parts.client.forget(address);
            }
        });
    }

    /// a guest that is up, created if need be.
    async fn arrive(self: &Arc<Self>, call: &GuestCall, deadline: Instant) -> Result<InFlight, GuestError> {
        let mut cause = None;
        loop {
            let flight = self.lock().get(&call.id).map(InFlight::new);
            let Some(flight) = flight else {
                let order = call.order.as_deref().ok_or(GuestError::NotStarted)?;
                if Instant::now() >= deadline {
                    return Err(GuestError::RuntimeTimeout(cause));
                }
                let mut order = order.clone();
                // R-91 asks for this spelling.
                let hostname = self.parts.options.hostname.clone();
                order.variables.push(("INERNAL_EXECUTOR_HOSTNAME".into(), hostname));
                match self.register(order) {
                    Ok(entry) => {
                        let house = Arc::clone(self);
                        // Whoever waits learns the result from the entry.
                        self.tasks
                            .spawn("create a guest", async move { drop(house.carry_out(&entry).await) });
                    }
                    Err(GuestError::Conflict { .. }) => {}
                    Err(error) => return Err(error),
                }
                continue;
            };
            let settled = timeout_at(deadline.into(), flight.0.settled()).await;
            match settled.map_err(|_| GuestError::RuntimeTimeout(cause.clone()))? {
                Phase::Up(_) => return Ok(flight),
                Phase::Failed(why) if call.order.is_none() => {
                    tracing::info!(runtime = %call.id, "the runtime that a call waited for was not created: {why}");
                    return Err(GuestError::Vanished);
                }
                Phase::Failed(why) => match &*why {
                    GuestError::Unavailable(text) => cause = Some(text.clone()),
                    why => return Err(GuestError::CannotCreate(Box::new(why.clone()))),
                },
                Phase::Gone | Phase::Pending => return Err(GuestError::Vanished),
            }
            drop(flight);
            sleep(PAUSE).await;
        }
    }

    /// a copy with room, one more if all are busy and there may be more.
    async fn place(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        deadline: Instant,
    ) -> Result<(Option<OwnedSemaphorePermit>, Place), GuestError> {
        let Some(slots) = &entry.slots else {
            return entry.place(u32::MAX).map(|place| (None, place)).map_err(|_| GuestError::Vanished);
        };
        let busy = || GuestError::RuntimeTimeout(Some("all copies of the runtime are busy".into()));
        let slot =
            timeout_at(deadline.into(), Arc::clone(slots).acquire_owned()).await.map_err(|_| busy())?;
        let slot = slot.map_err(|_| GuestError::Vanished)?;
        let options = &self.parts.options;
        let most = options.concurrency.unwrap_or(u32::MAX);
        if let Ok(place) = entry.place(most) {
            return Ok((Some(slot), place));
        }
        let growing = Arc::clone(&entry.growing).lock_owned();
        let mut growing = timeout_at(deadline.into(), growing).await.map_err(|_| busy())?;
        loop {
            match entry.place(most) {
                Ok(place) => return Ok((Some(slot), place)),
                Err(0) => return Err(GuestError::Vanished),
                Err(copies) if copies < options.instances as usize => {
                    let (house, entry) = (Arc::clone(self), Arc::clone(entry));
                    // Who is late goes without it; half a start would be nobody's. The next one waits for its end.
                    let start = self.tasks.finish_always("start a copy", async move {
                        let started = house.start_copy(&entry).await;
                        if let Err(error) = &started {
                            let id = &entry.order.id;
                            tracing::info!(runtime = %id, "one more container of a runtime did not start: {error}");
                        }
                        (started, growing)
                    });
                    let (started, held) = timeout_at(deadline.into(), start).await.map_err(|_| busy())?;
                    started?;
                    growing = held;
                }
                Err(_) => return Err(busy()),
            }
        }
    }

    /// where the copy listens, waiting for it the first time.
    async fn listening(&self, entry: &Entry, copy: &Copy, deadline: Instant) -> Result<Spot, Lost> {
        if let Some(spot) = copy.known_spot() {
            return Ok(spot);
        }
        if let Some(address) = copy.lose_spot() {
            self.parts.client.forget(address);
        }
        let mut found = false;
        let look = async {
            while Instant::now() < deadline {
                let round = deadline.min(Instant::now() + LISTEN_ROUND);
                let listening = async {
                    let spot = copy.look(PORT).await?;
                    found = true;
                    self.parts.client.listening(spot.address, round).await.then_some(spot)
                };
                if let Ok(Some(spot)) = timeout_at(round.into(), listening).await {
                    return Some(spot);
                }
                sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
            None
        };
        // Asked once: to ask anew in every round would never hear an answer that takes longer than a round.
        let spot = tokio::select! {
            spot = look => spot,
            exit = copy.guest.ended() => return Err(dead(&exit.to_string())),
        };
        if let Some(spot) = spot {
            copy.set_spot(spot);
            entry.heard();
            return Ok(spot);
        }
        let cause = if found { "it runs, but nothing listens on its port 3000" } else { "it has no address" };
        Err(GuestError::RuntimeTimeout(Some(cause.into())).into())
    }

    ///
    async fn send(
        &self,
        entry: &Entry,
        copy: &Copy,
        spot: Spot,
        call: &GuestCall,
        limit: Duration,
    ) -> Result<Incoming, Lost> {
        let (begun, options) = (Instant::now(), &self.parts.options);
        let (mut attempts, mut spot) = (0, Some(spot));
        loop {
            attempts += 1;
            let sent = match spot {
                Some(Spot { address, ends }) => {
                    let target = Target {
                        address,
                        profile: entry.order.profile,
                        secret: entry.secret.clone(),
                        logs: Some(copy.logs.clone()),
                        alive: guest_alive(&copy.guest, ends),
                    };
                    let sent = self.parts.client.send(&target, outgoing(call, limit)).await;
                    if sent.is_err() {
                        // Wherever it listens, it is to be looked for again.
                        copy.lose_spot();
                        self.parts.client.forget(address);
                    }
                    sent
                }
                // Where it was, another one may listen by now.
                None => Err(TransportError::Refused),
            };
            let error = match sent {
                Ok(incoming) => return Ok(incoming),
                Err(error) => error,
            };
            let exit = tokio::time::timeout(Duration::from_millis(50), copy.guest.ended()).await;
            if let Ok(exit) = exit {
                let cause = format!("the runtime {exit} ({error})");
                let unsent = matches!(error, TransportError::Refused);
                let error = GuestError::Transport { number: error.errno(), cause };
                return Err(Lost { error, dead: true, unsent });
            }
            let again = attempts < options.retry_attempts || begun.elapsed() < limit;
            if !matches!(error, TransportError::Refused) || !again {
                return Err(transport_error(&error).into());
            }
            sleep(options.retry_delay).await;
            spot = copy.look(PORT).await;
        }
    }
}

fn outgoing(call: &GuestCall, limit: Duration) -> Outgoing {
    Outgoing {
        method: call.method.clone(),
        path: call.path.clone(),
        headers: call.headers.clone(),
        body: Body::Full(call.body.clone()),
        logging: call.logging,
        limit,
        basic: true,
        most: None,
        variables: call.variables.clone(),
    }
}

fn executed(incoming: Incoming, held: Held, started: Instant, start_time: f64) -> Executed {
    let Incoming { status, headers, body, lines, .. } = incoming;
    let held = Arc::new(held);
    let body = match body {
        Body::Full(bytes) => Body::Full(bytes),
        Body::Stream(stream) => {
            let held = Arc::clone(&held);
            Body::Stream(
                stream
                    .map(move |piece| {
                        // A copy that died in the middle is looked for anew by the next call.
                        if piece.is_err() {
                            held.place.copy.lose_spot();
                        }
                        piece
                    })
                    .boxed(),
            )
        }
    };
    let rest = Box::pin(async move {
        let duration = started.elapsed().as_secs_f64();
        let (logs, errors) = lines.await;
        drop(held);
        Rest { logs, errors, duration }
    });
    Executed { status, headers, body, start_time, rest }
}

/// Why a copy gave no answer.
struct Lost {
    error: GuestError,
    /// The copy has ended.
    dead: bool,
    /// It has not seen the request, so that another one may.
    unsent: bool,
}

impl From<GuestError> for Lost {
    fn from(error: GuestError) -> Self {
        Self { error, dead: false, unsent: true }
    }
}

/// it is there, and it is dead.
fn dead(exit: &str) -> Lost {
    let error = GuestError::Transport { number: 7, cause: format!("the runtime {exit}") };
    Lost { error, dead: true, unsent: true }
}

fn transport_error(error: &TransportError) -> GuestError {
    GuestError::Transport { number: error.errno(), cause: error.to_string() }
}

#[cfg(test)]
#[path = "house_tests.rs"]
mod tests;
