//! Request bodies that are read whole before a call, because a slow sender must not hold an entity.
//!
//! Each body has its own limit; here is the one over all of them, so that many callers at once cannot take the host's
//! memory. Who finds it used up is refused at once: waiting for others' bodies while holding half of one's own could
//! make everybody wait.

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout_at;

use super::CallError;
use crate::execution::{Body, BodyError, Request};

/// Bytes of bodies being read at the same time.
pub(super) const MAX_BUFFERED: usize = 256 << 20;

pub(super) struct Bodies(Semaphore);

impl Default for Bodies {
    fn default() -> Self {
        Self(Semaphore::new(MAX_BUFFERED))
    }
}

impl Bodies {
    /// Reads all of a streamed body. The room it takes is given back when the permit is dropped; a body that came
    /// with the request takes none.
    pub(super) async fn collect(
        &self,
        request: &mut Request,
    ) -> Result<Option<SemaphorePermit<'_>>, CallError> {
        let Body::Stream(stream) = &mut request.body else { return Ok(None) };
        let mut all = Vec::new();
        let mut room = self.0.acquire_many(0).await.map_err(|_| CallError::Closing)?;
        let gather = async {
            while let Some(piece) = stream.next().await {
                let piece = piece?;
                let more =
                    u32::try_from(piece.len()).ok().and_then(|size| self.0.try_acquire_many(size).ok());
                room.merge(more.ok_or(CallError::Overloaded)?);
                all.extend_from_slice(&piece);
            }
            Ok::<_, CallError>(())
        };
        match timeout_at(request.deadline.into(), gather).await {
            Ok(result) => result?,
            Err(_) => {
                return Err(BodyError::Broken("it was not complete at the call's deadline".into()).into());
            }
        }
        request.body = Body::Full(Bytes::from(all));
        Ok(Some(room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: usize) -> Request {
        let mut request = Request::for_test("/", "");
        let piece = Bytes::from(vec![0; 1 << 20]);
        let pieces = (0..bytes >> 20).map(move |_| Ok(piece.clone()));
        request.body = Body::Stream(futures_util::stream::iter(pieces).boxed());
        request
    }

    #[tokio::test]
    async fn bound_over_all_bodies_and_one_above() {
        let bodies = Bodies::default();
        let mut first = request(MAX_BUFFERED);
        let room = bodies.collect(&mut first).await.unwrap();
        assert!(matches!(first.body, Body::Full(ref body) if body.len() == MAX_BUFFERED));
        let mut second = request(1 << 20);
        assert!(matches!(bodies.collect(&mut second).await, Err(CallError::Overloaded)));
        drop(room);
        assert!(bodies.collect(&mut request(1 << 20)).await.is_ok(), "the room came back");
    }
}
