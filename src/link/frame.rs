//! Frames: `u32` length of the rest, `u8` type, `u32` call id, payload; big-endian.
//!
//! Pure. Decoding never copies a payload: it is split off the read buffer.

use bytes::{Buf, Bytes, BytesMut};

/// The largest value of the length field. Bounds what one frame can make the host buffer.
pub const MAX_FRAME: usize = 32 << 20;
/// Length, type and call id.
pub const HEADER: usize = 9;
/// DATA bytes per call and direction before the first CREDIT.
pub const WINDOW: usize = 256 << 10;
/// The largest payload of one DATA frame.
pub const MAX_DATA: usize = 64 << 10;
/// The largest request body that goes within its CALL. Larger ones go as DATA, so that state and body together never
/// exceed a frame.
pub const MAX_INLINE: usize = 1 << 20;
/// The most bytes of state in one CALL: what a frame has besides body and head.
pub const MAX_STATE_IN: usize = MAX_FRAME - MAX_INLINE - (2 << 20);

/// What a frame is. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the table in runtimes/README.md describes each")]
pub enum Kind {
    Hello = 1,
    Init = 2,
    Ready = 3,
    Failed = 4,
    Call = 5,
    Result = 6,
    Error = 7,
    Data = 8,
    End = 9,
    Credit = 10,
    Log = 11,
    Cancel = 12,
    Stop = 13,
    Stopped = 14,
}

impl Kind {
    fn from_wire(byte: u8) -> Option<Self> {
        use Kind::{
            Call, Cancel, Credit, Data, End, Error, Failed, Hello, Init, Log, Ready, Result, Stop, Stopped,
        };
        let all =
            [Hello, Init, Ready, Failed, Call, Result, Error, Data, End, Credit, Log, Cancel, Stop, Stopped];
        all.get(usize::from(byte).wrapping_sub(1)).copied()
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: Kind,
    /// The call it belongs to; 0: the instance.
    pub call: u32,
    /// The rest.
    pub payload: Bytes,
}

/// The other side broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A frame shorter than its own header or longer than the limit.
    #[error("a frame of {0} bytes; 5 to {MAX_FRAME} are allowed")]
    Length(usize),
    /// A type that does not exist.
    #[error("a frame of the unknown type {0}")]
    Kind(u8),
}

/// Takes the next whole frame off `buffer`; `None`: more bytes are needed.
pub fn decode(buffer: &mut BytesMut, max: usize) -> Result<Option<Frame>, FrameError> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if !(HEADER - 4..=max).contains(&length) {
        return Err(FrameError::Length(length));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    let mut payload = buffer.split_to(length).freeze();
    let kind = payload.get_u8();
    let kind = Kind::from_wire(kind).ok_or(FrameError::Kind(kind))?;
    let call = payload.get_u32();
    Ok(Some(Frame { kind, call, payload }))
}

/// Appends a frame whose payload `write` appends. The length is filled in afterwards.
pub fn encode(out: &mut Vec<u8>, kind: Kind, call: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(kind as u8);
    out.extend_from_slice(&call.to_be_bytes());
    write(out);
    let length = out.len() - start - 4;
    debug_assert!(length <= MAX_FRAME);
    out[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
}

/// Splits `u32` head length, head, rest. `None`: the head is longer than the payload.
pub fn split_head(mut payload: Bytes) -> Option<(Bytes, Bytes)> {
    if payload.len() < 4 {
        return None;
    }
    let length = payload.get_u32() as usize;
    (length <= payload.len()).then(|| (payload.split_to(length), payload))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_splitting(
            frames in prop::collection::vec((1u8..=14, any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)), 0..20),
            step in 1usize..50,
        ) {
            let mut wire = Vec::new();
            for (kind, call, payload) in &frames {
                encode(&mut wire, Kind::from_wire(*kind).unwrap(), *call, |out| out.extend_from_slice(payload));
            }
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = decode(&mut buffer, MAX_FRAME).unwrap() {
                    seen.push((frame.kind as u8, frame.call, frame.payload.to_vec()));
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = decode(&mut buffer, 1000) {
                let _ = split_head(frame.payload);
            }
        }
    }

    #[test]
    fn length_at_the_bound_and_one_above() {
        let mut at = BytesMut::from(&100u32.to_be_bytes()[..]);
        assert_eq!(decode(&mut at, 100), Ok(None));
        let mut above = BytesMut::from(&101u32.to_be_bytes()[..]);
        assert_eq!(decode(&mut above, 100), Err(FrameError::Length(101)));
        let mut short = BytesMut::from(&4u32.to_be_bytes()[..]);
        assert_eq!(decode(&mut short, 100), Err(FrameError::Length(4)));
        let mut unknown = BytesMut::from(&[0, 0, 0, 5, 15, 0, 0, 0, 0][..]);
        assert_eq!(decode(&mut unknown, 100), Err(FrameError::Kind(15)));
    }
}
