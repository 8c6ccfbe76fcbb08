//! Frames from and to a connection.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::dial::LinkError;
use super::{SILENCE, WRITE_BUFFER};
use crate::wire::peer::{self, FRAME_HEAD_BYTES, Kind};

/// Reads the next frame; `None` if the other side has closed the connection before it.
///
/// # Errors
/// [`LinkError`], among them [`LinkError::Timeout`] if nothing comes for [`SILENCE`].
pub(super) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<(Kind, Vec<u8>)>, LinkError> {
    let mut head = [0; FRAME_HEAD_BYTES];
    match within(SILENCE, stream.read_exact(&mut head)).await {
        Err(LinkError::End) => return Ok(None),
        read => read?,
    };
    let (kind, length) = peer::parse_frame_head(head)?;
    // Grows with what arrives, so a head alone costs no memory.
    let mut body = Vec::with_capacity(length.min(WRITE_BUFFER));
    let mut rest = stream.take(u64::try_from(length).unwrap_or(u64::MAX));
    while body.len() < length {
        if within(SILENCE, rest.read_buf(&mut body)).await? == 0 {
            return Err(LinkError::Io("the connection ended within a frame".to_owned()));
        }
    }
    Ok(Some((kind, body)))
}

/// Writes a frame whose body comes in parts; it may still be in a buffer afterwards.
///
/// # Errors
/// [`LinkError`], among them [`LinkError::Timeout`] if the other side takes nothing for [`SILENCE`].
async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    parts: &[&[u8]],
) -> Result<(), LinkError> {
    let length = parts.iter().map(|part| part.len()).sum();
    within(SILENCE, stream.write_all(&peer::frame_head(kind, length)?)).await?;
    // In pieces: a large frame may take its time, as long as the other side takes something all along.
    for piece in parts.iter().flat_map(|part| part.chunks(WRITE_BUFFER)) {
        within(SILENCE, stream.write_all(piece)).await?;
    }
    Ok(())
}

/// The same, and on its way when this returns.
///
/// # Errors
/// [`LinkError`].
pub(super) async fn send_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    parts: &[&[u8]],
) -> Result<(), LinkError> {
    write_frame(stream, kind, parts).await?;
    flush(stream).await
}

/// Puts what is in a buffer on its way.
///
/// # Errors
/// [`LinkError`].
async fn flush(stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), LinkError> {
    within(SILENCE, stream.flush()).await
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> Result<T, LinkError> {
    match timeout(limit, work).await {
        Err(_) => Err(LinkError::Timeout(limit)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(LinkError::End),
        Ok(done) => Ok(done?),
    }
}
