//! What a function did to a state, read from the JSON of its RESULT.
//!
//! Operations are folded while they are read: of several on one element only the last counts, amounts add up. What
//! remains is the effect of the whole call.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::CrdtType;
use super::counter::MAX_COUNT;
use super::json::Json;

/// The most operations of one call.
pub const MAX_OPS: usize = 10_000;

/// The operations of one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ops {
    pub(super) kind: CrdtType,
    pub(super) effect: Effect,
}

/// What operations do together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Count(i128),
    /// Whether each is added in the end, or removed.
    Elements(BTreeMap<Json, bool>),
    Set(Json),
    Enable,
    Votes(BTreeMap<Box<str>, bool>),
    Entries(Effects),
}

/// What operations on a map do together.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Effects {
    /// What was there before is to be deleted.
    pub(super) deleted: BTreeSet<Box<str>>,
    /// What is done to entries, after the deletions.
    pub(super) entries: BTreeMap<Box<str>, (CrdtType, Effect)>,
}

/// Why bytes are no operations. For the author of the worker, or of the function.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpsError {
    /// They are no JSON array of objects.
    #[error("the operations are not a JSON array: {0}")]
    Syntax(String),
    /// There are more than [`MAX_OPS`].
    #[error("more than {MAX_OPS} operations in one call")]
    TooMany,
    /// There is none.
    #[error("there is no operation; leave the state unchanged instead")]
    None,
    /// One of them is wrong.
    #[error("operation {index}: {why}")]
    Op {
        /// Which, from 0.
        index: usize,
        /// What is wrong with it.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOp<'a> {
    op: String,
    #[serde(borrow, default, deserialize_with = "present")]
    n: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    v: Option<&'a RawValue>,
    voter: Option<String>,
    k: Option<String>,
    r#type: Option<String>,
    #[serde(borrow, default, deserialize_with = "present", rename = "do")]
    inner: Option<&'a RawValue>,
}

/// `null` is a value like any other, not a member that is missing.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// At most [`MAX_OPS`] raw values; the list is not read further when there are more.
struct RawOps<'a>(Vec<&'a RawValue>);

const TOO_MANY: &str = "too many operations";

impl<'de> Deserialize<'de> for RawOps<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("an array of operations")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(raw) = from.next_element()? {
                    if list.len() == MAX_OPS {
                        return Err(de::Error::custom(TOO_MANY));
                    }
                    list.push(raw);
                }
                Ok(list)
            }
        }
        from.deserialize_seq(List).map(Self)
    }
}

impl Ops {
    /// Reads the JSON array of operations on a state of type `kind`.
    ///
    /// # Errors
    /// See [`OpsError`].
    pub fn parse(kind: CrdtType, bytes: &[u8]) -> Result<Self, OpsError> {
        let list: RawOps<'_> = serde_json::from_slice(bytes).map_err(|error| {
            let why = error.to_string();
            if why.starts_with(TOO_MANY) { OpsError::TooMany } else { OpsError::Syntax(why) }
        })?;
        let mut effect = None;
        for (index, raw) in list.0.into_iter().enumerate() {
            apply(&mut effect, kind, raw).map_err(|why| OpsError::Op { index, why })?;
        }
        Ok(Self { kind, effect: effect.ok_or(OpsError::None)? })
    }

    /// The most dots that they need.
    pub(super) fn dots(&self) -> u64 {
        self.effect.dots()
    }
}

impl Effect {
    fn dots(&self) -> u64 {
        match self {
            Self::Count(_) | Self::Set(_) | Self::Enable => 1,
            Self::Elements(elements) => elements.len() as u64,
            Self::Votes(votes) => votes.len() as u64,
            Self::Entries(effects) => effects.entries.values().map(|(_, effect)| effect.dots()).sum(),
        }
    }
}

/// Adds the operation `raw` on a `kind` to `effect`, which is none before the first.
fn apply(effect: &mut Option<Effect>, kind: CrdtType, raw: &RawValue) -> Result<(), String> {
    let op: RawOp<'_> = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    let known = match kind {
        CrdtType::GCounter | CrdtType::PnCounter | CrdtType::GSet => &["add"][..],
        CrdtType::OrSet => &["add", "remove"],
        CrdtType::LwwRegister => &["set"],
        CrdtType::Flag => &["enable"],
        CrdtType::Vote => &["vote"],
        CrdtType::OrMap => &["entry", "delete"],
    };
    if !known.contains(&&*op.op) {
        return Err(format!("`{kind}` has no operation `{}`, only `{}`", op.op, known.join("` and `")));
    }
    op.check_members(kind)?;
    let before = effect.take();
    *effect = Some(match kind {
        CrdtType::GCounter | CrdtType::PnCounter => {
            let so_far = if let Some(Effect::Count(n)) = before { n } else { 0 };
            Effect::Count(so_far + i128::from(op.amount(kind == CrdtType::GCounter)?))
        }
        CrdtType::GSet | CrdtType::OrSet => {
            let mut elements = if let Some(Effect::Elements(map)) = before { map } else { BTreeMap::new() };
            elements.insert(op.value()?, op.op == "add");
            Effect::Elements(elements)
        }
        CrdtType::LwwRegister => Effect::Set(op.value()?),
        CrdtType::Flag => Effect::Enable,
        CrdtType::Vote => {
            let mut votes = if let Some(Effect::Votes(map)) = before { map } else { BTreeMap::new() };
            let (voter, value) = op.vote()?;
            votes.insert(voter, value);
            Effect::Votes(votes)
        }
        CrdtType::OrMap => {
            let mut effects =
                if let Some(Effect::Entries(effects)) = before { effects } else { Effects::default() };
            op.change(&mut effects)?;
            Effect::Entries(effects)
        }
    });
    Ok(())
}

impl RawOp<'_> {
    /// What belongs to another operation is more likely a mistake than meant to be ignored.
    fn check_members(&self, kind: CrdtType) -> Result<(), String> {
        let may = match (kind, &*self.op) {
            (CrdtType::GCounter | CrdtType::PnCounter, _) => &["n"][..],
            (CrdtType::Flag, _) => &[],
            (CrdtType::Vote, _) => &["voter", "v"],
            (CrdtType::OrMap, "entry") => &["k", "type", "do"],
            (CrdtType::OrMap, _) => &["k"],
            _ => &["v"],
        };
        let has = [
            ("n", self.n.is_some()),
            ("v", self.v.is_some()),
            ("voter", self.voter.is_some()),
            ("k", self.k.is_some()),
            ("type", self.r#type.is_some()),
            ("do", self.inner.is_some()),
        ];
        match has.into_iter().find(|(name, has)| *has && !may.contains(name)) {
            Some((name, _)) => Err(format!("`{}` of `{kind}` takes no `{name}`", self.op)),
            None => Ok(()),
        }
    }

    fn missing(&self, member: &str) -> String {
        format!("`{}` needs a member `{member}`", self.op)
    }

    fn value(&self) -> Result<Json, String> {
        let raw = self.v.ok_or_else(|| self.missing("v"))?;
        Json::parse(raw.get()).map_err(|error| format!("the value cannot be kept: {error}"))
    }

    fn amount(&self, grows: bool) -> Result<i64, String> {
        let raw = self.n.ok_or_else(|| self.missing("n"))?;
        let low = if grows { 0 } else { -MAX_COUNT };
        let json = Json::parse(raw.get()).ok();
        let amount = json.and_then(|json| json.text().parse().ok()).filter(|n| (low..=MAX_COUNT).contains(n));
        amount.ok_or_else(|| {
            let shown: String = raw.get().chars().take(40).collect();
            format!("`n` must be a whole number from {low} to {MAX_COUNT}, not {shown}")
        })
    }

    fn vote(self) -> Result<(Box<str>, bool), String> {
        let raw = self.v.ok_or_else(|| self.missing("v"))?;
        let value = serde_json::from_str(raw.get()).map_err(|_| "`v` of a vote must be true or false")?;
        Ok((self.voter.ok_or_else(|| "`vote` needs a member `voter`".to_owned())?.into(), value))
    }

    fn change(self, effects: &mut Effects) -> Result<(), String> {
        let missing = |member| format!("`{}` needs a member `{member}`", self.op);
        let name: Box<str> = self.k.clone().ok_or_else(|| missing("k"))?.into();
        if self.op == "delete" {
            effects.entries.remove(&name);
            effects.deleted.insert(name);
            return Ok(());
        }
        let kind: CrdtType = self.r#type.as_deref().ok_or_else(|| missing("type"))?.parse()?;
        let inner = self.inner.ok_or_else(|| missing("do"))?;
        if kind == CrdtType::OrMap {
            return Err("an or-map holds no or-map".to_owned());
        }
        let mut effect = match effects.entries.remove(&name) {
            Some((was, _)) if was != kind => {
                return Err(format!("the entry `{name}` is a {was}, not a {kind}"));
            }
            Some((_, effect)) => Some(effect),
            None => None,
        };
        apply(&mut effect, kind, inner)?;
        effects.entries.extend(effect.map(|effect| (name, (kind, effect))));
        Ok(())
    }
}
