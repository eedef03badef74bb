//! The stored form of a state.
//!
//! A byte for the version of the form, one for the type, the names of the replicas, the context, the store. Numbers are
//! varints (LEB128; zigzag where they have a sign), texts and lists have their length in front, maps are sorted by
//! key. A replica is named once and otherwise meant by its place in the list, in the order of first use.
//! So equal states have equal bytes.
//!
//! Bytes are not trusted: whatever they are, the result is a sound state or an error.

use std::collections::BTreeMap;

use super::context::{Context, Dot, Replica};
use super::counter::{Counter, Share};
use super::json::Json;
use super::keyed::{Keyed, Written};
use super::map::Map;
use super::store::Store;
use super::{Crdt, CrdtError, CrdtType};

const VERSION: u8 = 1;

/// Amounts and sums are far from this; sums of what was read cannot overflow.
const MAX_SUM: i128 = 1 << 90;

#[derive(Default)]
struct Writer {
    out: Vec<u8>,
    replicas: BTreeMap<Replica, u64>,
    names: Vec<Replica>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    replicas: Vec<Replica>,
}

trait Code: Sized {
    fn write(&self, to: &mut Writer);
    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError>;
}

fn corrupt<T>(what: &str) -> Result<T, CrdtError> {
    Err(CrdtError::Corrupt { what: what.to_owned() })
}

impl Writer {
    fn number(&mut self, mut number: u128) {
        while number >= 0x80 {
            self.out.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.out.push(number as u8);
    }
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: u64) -> Result<&'a [u8], CrdtError> {
        let split = usize::try_from(length).ok().and_then(|length| self.bytes.split_at_checked(length));
        let Some((taken, rest)) = split else { return corrupt("it is cut off") };
        self.bytes = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, CrdtError> {
        self.take(1).map(|byte| byte[0])
    }

    fn number(&mut self) -> Result<u128, CrdtError> {
        let mut number = 0;
        for shift in (0..105).step_by(7) {
            let byte = self.byte()?;
            number |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        corrupt("a number is too long")
    }

    fn text(&mut self) -> Result<&'a str, CrdtError> {
        let length = u64::read(self)?;
        std::str::from_utf8(self.take(length)?).or_else(|_| corrupt("a text is not UTF-8"))
    }
}

impl Code for () {
    fn write(&self, _: &mut Writer) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, CrdtError> {
        Ok(())
    }
}

impl Code for bool {
    fn write(&self, to: &mut Writer) {
        to.out.push(u8::from(*self));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        match from.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => corrupt("neither true nor false"),
        }
    }
}

impl Code for u64 {
    fn write(&self, to: &mut Writer) {
        to.number(u128::from(*self));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        from.number()?.try_into().or_else(|_| corrupt("a number is too large"))
    }
}

impl Code for i128 {
    fn write(&self, to: &mut Writer) {
        to.number(((self << 1) ^ (self >> 127)).cast_unsigned());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        let number = from.number()?;
        let sum = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
        if sum.abs() > MAX_SUM { corrupt("a sum is too large") } else { Ok(sum) }
    }
}

impl Code for Box<str> {
    fn write(&self, to: &mut Writer) {
        (self.len() as u64).write(to);
        to.out.extend_from_slice(self.as_bytes());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        from.text().map(Into::into)
    }
}

impl Code for Json {
    fn write(&self, to: &mut Writer) {
        (self.text().len() as u64).write(to);
        to.out.extend_from_slice(self.text().as_bytes());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        let text = from.text()?;
        match Self::parse(text) {
            Ok(json) if json.text() == text => Ok(json),
            _ => corrupt("a value is not canonical JSON"),
        }
    }
}

impl Code for CrdtType {
    fn write(&self, to: &mut Writer) {
        to.out.push(*self as u8);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        let number = from.byte()?;
        Self::ALL
            .into_iter()
            .find(|kind| *kind as u8 == number)
            .map_or_else(|| corrupt("an unknown type"), Ok)
    }
}

impl Code for Replica {
    fn write(&self, to: &mut Writer) {
        let next = to.names.len() as u64;
        let number = *to.replicas.entry(self.clone()).or_insert(next);
        if number == next {
            to.names.push(self.clone());
        }
        number.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        let at = usize::try_from(u64::read(from)?).ok();
        at.and_then(|at| from.replicas.get(at)).cloned().map_or_else(|| corrupt("an unknown replica"), Ok)
    }
}

impl Code for Dot {
    fn write(&self, to: &mut Writer) {
        self.replica.write(to);
        self.sequence.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        Ok(Self { replica: Replica::read(from)?, sequence: u64::read(from)? })
    }
}

impl<T: Code> Code for Written<T> {
    fn write(&self, to: &mut Writer) {
        self.at.write(to);
        self.value.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        Ok(Self { at: u64::read(from)?, value: T::read(from)? })
    }
}

/// Reads a map whose entries `entry` reads.
fn read_map<K: Ord, V>(
    from: &mut Reader<'_>,
    mut entry: impl FnMut(&mut Reader<'_>) -> Result<(K, V), CrdtError>,
) -> Result<BTreeMap<K, V>, CrdtError> {
    let mut map = BTreeMap::new();
    for _ in 0..u64::read(from)? {
        let (key, value) = entry(from)?;
        if map.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return corrupt("keys are not in order");
        }
        map.insert(key, value);
    }
    Ok(map)
}

impl<K: Code + Ord, V: Code> Code for BTreeMap<K, V> {
    fn write(&self, to: &mut Writer) {
        (self.len() as u64).write(to);
        for (key, value) in self {
            key.write(to);
            value.write(to);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        read_map(from, |from| Ok((K::read(from)?, V::read(from)?)))
    }
}

impl<K: Code + Ord, T: Code> Code for Keyed<K, T> {
    fn write(&self, to: &mut Writer) {
        self.0.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        BTreeMap::read(from).map(Self)
    }
}

impl Code for Share {
    fn write(&self, to: &mut Writer) {
        self.birth.write(to);
        self.upto.write(to);
        self.sum.write(to);
        self.recent.write(to);
        self.deleted.0.write(to);
        self.deleted.1.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        Ok(Self {
            birth: u64::read(from)?,
            upto: u64::read(from)?,
            sum: i128::read(from)?,
            recent: BTreeMap::read(from)?,
            deleted: (u64::read(from)?, i128::read(from)?),
        })
    }
}

/// Each range as what lies between it and the one before, and how long it is.
impl Code for Vec<(u64, u64)> {
    fn write(&self, to: &mut Writer) {
        (self.len() as u64).write(to);
        let mut next = 0;
        for (low, high) in self {
            (low - next).write(to);
            (high - low).write(to);
            next = high.saturating_add(1);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CrdtError> {
        let mut ranges: Self = Self::new();
        for _ in 0..u64::read(from)? {
            let (skipped, more) = (u64::read(from)?, u64::read(from)?);
            let next = ranges.last().map_or(Some(0), |(_, high)| high.checked_add(1));
            let low = next.filter(|_| skipped > 0).and_then(|next| next.checked_add(skipped));
            match low.and_then(|low| Some((low, low.checked_add(more)?))) {
                Some(range) => ranges.push(range),
                None => return corrupt("ranges are not in order"),
            }
        }
        if ranges.is_empty() { corrupt("a replica without ranges") } else { Ok(ranges) }
    }
}

impl Store {
    fn write(&self, to: &mut Writer) {
        match self {
            Self::Counter(counter) => counter.0.write(to),
            Self::Set(set) => set.write(to),
            Self::Register(register) => register.write(to),
            Self::Flag(flag) => flag.write(to),
            Self::Votes(votes) => votes.write(to),
            Self::Map(map) => {
                (map.0.len() as u64).write(to);
                for (name, kinds) in &map.0 {
                    name.write(to);
                    (kinds.len() as u64).write(to);
                    for (kind, store) in kinds {
                        kind.write(to);
                        store.write(to);
                    }
                }
            }
        }
    }

    fn read(from: &mut Reader<'_>, kind: CrdtType) -> Result<Self, CrdtError> {
        Ok(match kind {
            CrdtType::GCounter | CrdtType::PnCounter => Self::Counter(Counter(BTreeMap::read(from)?)),
            CrdtType::GSet | CrdtType::OrSet => Self::Set(Keyed::read(from)?),
            CrdtType::LwwRegister => Self::Register(Keyed::read(from)?),
            CrdtType::Flag => Self::Flag(Keyed::read(from)?),
            CrdtType::Vote => Self::Votes(Keyed::read(from)?),
            CrdtType::OrMap => Self::Map(Map(read_map(from, |from| {
                let name = Box::read(from)?;
                let kinds = read_map(from, |from| match CrdtType::read(from)? {
                    CrdtType::OrMap => corrupt("a map in a map"),
                    kind => Ok((kind, Self::read(from, kind)?)),
                })?;
                Ok((name, kinds))
            })?)),
        })
    }
}

impl Crdt {
    /// The stored form. Equal states have equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer::default();
        self.context.0.write(&mut body);
        self.store.write(&mut body);
        let mut whole = Writer { out: vec![VERSION], ..Writer::default() };
        self.kind.write(&mut whole);
        (body.names.len() as u64).write(&mut whole);
        for replica in body.names {
            Box::<str>::from(replica.name()).write(&mut whole);
        }
        whole.out.append(&mut body.out);
        whole.out
    }

    /// The reverse of [`Crdt::encode`], for bytes from anywhere.
    ///
    /// # Errors
    /// `TooNew`, `Corrupt`.
    pub fn decode(bytes: &[u8]) -> Result<Self, CrdtError> {
        let mut from = Reader { bytes, replicas: Vec::new() };
        match from.byte()? {
            VERSION => {}
            0 => return corrupt("it has no version"),
            found => return Err(CrdtError::TooNew { found, supported: VERSION }),
        }
        let kind = CrdtType::read(&mut from)?;
        for _ in 0..u64::read(&mut from)? {
            let Some(replica) = Replica::new(from.text()?) else { return corrupt("a replica's name") };
            from.replicas.push(replica);
        }
        let context = Context(BTreeMap::read(&mut from)?);
        let store = Store::read(&mut from, kind)?;
        if !from.bytes.is_empty() {
            return corrupt("more follows than belongs to it");
        }
        let counter = matches!(store, Store::Counter(_));
        if !store.is_sound(&context, true) || (counter && !context.is_empty()) {
            return corrupt("its parts contradict each other");
        }
        Ok(Self { kind, context, store })
    }
}
