//! What a type holds, whichever it is. One enum and no trait objects: the set of types is part of the protocol.

use super::CrdtType;
use super::context::{Context, Dot};
use super::counter::Counter;
use super::delta::{Author, DeltaError};
use super::json::{self, Json};
use super::keyed::{Keyed, Written, latest};
use super::map::Map;
use super::ops::Effect;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Store {
    Counter(Counter),
    Set(Keyed<Json, ()>),
    Register(Keyed<(), Written<Json>>),
    Flag(Keyed<(), ()>),
    Votes(Keyed<Box<str>, Written<bool>>),
    Map(Map),
}

impl Store {
    pub(super) fn new(kind: CrdtType) -> Self {
        match kind {
            CrdtType::GCounter | CrdtType::PnCounter => Self::Counter(Counter::default()),
            CrdtType::GSet | CrdtType::OrSet => Self::Set(Keyed::default()),
            CrdtType::LwwRegister => Self::Register(Keyed::default()),
            CrdtType::Flag => Self::Flag(Keyed::default()),
            CrdtType::Vote => Self::Votes(Keyed::default()),
            CrdtType::OrMap => Self::Map(Map::default()),
        }
    }

    /// Whether nothing at all is in it.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Counter(counter) => counter.0.is_empty(),
            Self::Set(set) => set.0.is_empty(),
            Self::Register(register) => register.0.is_empty(),
            Self::Flag(flag) => flag.0.is_empty(),
            Self::Votes(votes) => votes.0.is_empty(),
            Self::Map(map) => map.0.is_empty(),
        }
    }

    /// Whether a map shows it: something is in it that was not deleted.
    pub(super) fn lives(&self) -> bool {
        if let Self::Counter(counter) = self { counter.lives() } else { !self.is_empty() }
    }

    /// Joins `other`, which has seen `others`, into this, which has seen `context`. Both are of one type.
    pub(super) fn join(&mut self, context: &Context, other: &Self, others: &Context) {
        match (self, other) {
            (Self::Counter(mine), Self::Counter(theirs)) => mine.join(context, theirs, others),
            (Self::Set(mine), Self::Set(theirs)) => mine.join(context, theirs, others),
            (Self::Register(mine), Self::Register(theirs)) => mine.join(context, theirs, others),
            (Self::Flag(mine), Self::Flag(theirs)) => mine.join(context, theirs, others),
            (Self::Votes(mine), Self::Votes(theirs)) => mine.join(context, theirs, others),
            (Self::Map(mine), Self::Map(theirs)) => mine.join(context, theirs, others),
            _ => debug_assert!(false, "stores of two types"),
        }
    }

    /// The deletion of all that `observed` has, as far as it is still here.
    pub(super) fn clear(&self, observed: &Self, author: &mut Author<'_>) -> Self {
        let seen = &mut author.seen;
        match (self, observed) {
            (Self::Counter(mine), Self::Counter(observed)) => return Self::Counter(mine.clear(observed)),
            (Self::Set(mine), Self::Set(observed)) => mine.clear(observed, seen),
            (Self::Register(mine), Self::Register(observed)) => mine.clear(observed, seen),
            (Self::Flag(mine), Self::Flag(observed)) => mine.clear(observed, seen),
            (Self::Votes(mine), Self::Votes(observed)) => mine.clear(observed, seen),
            _ => debug_assert!(false, "a map in a map, or stores of two types"),
        }
        // Of these the author's context says all.
        let mut empty = self.clone();
        empty.empty();
        empty
    }

    fn empty(&mut self) {
        match self {
            Self::Counter(counter) => counter.0.clear(),
            Self::Set(set) => set.0.clear(),
            Self::Register(register) => register.0.clear(),
            Self::Flag(flag) => flag.0.clear(),
            Self::Votes(votes) => votes.0.clear(),
            Self::Map(map) => map.0.clear(),
        }
    }

    /// Adds to `delta` what `effect` changes of this, by an author who had seen `observed`.
    pub(super) fn delta(
        &self,
        observed: &Self,
        effect: &Effect,
        author: &mut Author<'_>,
        delta: &mut Self,
    ) -> Result<(), DeltaError> {
        match (effect, self, observed, delta) {
            (Effect::Count(amount), Self::Counter(mine), _, Self::Counter(delta)) => {
                if *amount != 0 || author.deletable {
                    mine.add(*amount, author, delta)?;
                }
            }
            (Effect::Elements(elements), Self::Set(mine), Self::Set(observed), Self::Set(delta)) => {
                for (element, stays) in elements {
                    if !stays {
                        mine.remove(observed, element, &mut author.seen);
                    } else if author.deletable || !mine.0.contains_key(element) {
                        mine.put(element.clone(), (), |()| true, author, delta);
                    }
                }
            }
            (Effect::Set(value), Self::Register(mine), Self::Register(observed), Self::Register(delta)) => {
                mine.set(observed, (), value.clone(), author, delta);
            }
            (Effect::Enable, Self::Flag(mine), _, Self::Flag(delta)) => {
                if author.deletable || mine.0.is_empty() {
                    mine.put((), (), |()| true, author, delta);
                }
            }
            (Effect::Votes(votes), Self::Votes(mine), Self::Votes(observed), Self::Votes(delta)) => {
                for (voter, value) in votes {
                    mine.set(observed, voter.clone(), *value, author, delta);
                }
            }
            (Effect::Entries(effects), Self::Map(mine), Self::Map(observed), Self::Map(delta)) => {
                *delta = mine.delta(observed, effects, author)?;
            }
            _ => debug_assert!(false, "an effect on another type"),
        }
        Ok(())
    }

    /// Appends the view that a worker gets.
    pub(super) fn view(&self, out: &mut String) {
        let member = match self {
            Self::Register(register) if register.0.is_empty() => {
                out.push_str("{}");
                return;
            }
            Self::Counter(_) | Self::Register(_) | Self::Flag(_) => "{\"value\":",
            Self::Set(_) => "{\"values\":",
            Self::Votes(_) => "{\"votes\":",
            Self::Map(_) => "{\"entries\":",
        };
        out.push_str(member);
        if let Self::Map(map) = self {
            map.view(out);
        } else {
            self.plain(out);
        }
        out.push('}');
    }

    /// Appends the value that a person wants to see.
    pub(super) fn plain(&self, out: &mut String) {
        let truth = |is: bool| if is { "true" } else { "false" };
        match self {
            Self::Counter(counter) => out.push_str(&counter.value().to_string()),
            Self::Set(set) => json::array(set.0.keys(), out, |value, out| out.push_str(value.text())),
            Self::Register(register) => {
                out.push_str(register.latest(&()).map_or("null", |written| written.value.text()));
            }
            Self::Flag(flag) => out.push_str(truth(!flag.0.is_empty())),
            Self::Votes(votes) => {
                let votes = votes.0.iter().filter_map(|(voter, dots)| Some((&**voter, latest(dots)?.value)));
                json::object(votes, out, |value, out| out.push_str(truth(value)));
            }
            Self::Map(map) => map.plain(out),
        }
    }

    /// Whether all in it is as this module makes it, under `context`. Nothing else would stay consistent.
    pub(super) fn is_sound(&self, context: &Context, top: bool) -> bool {
        fn seen<'a>(mut dots: impl Iterator<Item = &'a Dot>, context: &Context) -> bool {
            dots.all(|dot| context.contains(dot))
        }
        match self {
            Self::Counter(counter) => counter.0.iter().all(|(replica, share)| {
                let ordered = share.recent.first_key_value().is_none_or(|(dot, _)| *dot > share.upto);
                let known = share.recent.keys().all(|dot| context.has(replica, *dot));
                ordered && (share.last() == 0 || share.last() > share.birth) && (top || known)
            }),
            Self::Set(set) => set.0.values().all(|dots| !dots.is_empty()) && seen(set.all_dots(), context),
            Self::Register(register) => {
                register.0.values().all(|dots| !dots.is_empty()) && seen(register.all_dots(), context)
            }
            Self::Flag(flag) => {
                flag.0.values().all(|dots| !dots.is_empty()) && seen(flag.all_dots(), context)
            }
            Self::Votes(votes) => {
                votes.0.values().all(|dots| !dots.is_empty()) && seen(votes.all_dots(), context)
            }
            Self::Map(map) => map.0.values().all(|kinds| {
                !kinds.is_empty()
                    && kinds.values().all(|store| !store.is_empty() && store.is_sound(context, false))
            }),
        }
    }
}
