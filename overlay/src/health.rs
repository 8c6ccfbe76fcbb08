//! The health server of `-healthz-port`: `/healthz` says that the process lives, `/readyz` that the subnet is leased
//! and programmed (and, unlike flannel's, stops saying so when programming fails).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

/// Connections served at the same time; more wait.
const CONNECTIONS: usize = 64;

/// A bound health server.
pub struct Health {
    listener: TcpListener,
}

impl Health {
    /// Binds the address.
    ///
    /// # Errors
    /// When it is taken or not ours.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await? })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever.
    pub async fn serve(self, ready: watch::Receiver<bool>) {
        let slots = std::sync::Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("health server: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            };
            let ready = ready.clone();
            tokio::spawn(async move {
                let service = service_fn(|request: Request<hyper::body::Incoming>| {
                    let response = respond(request.uri().path(), *ready.borrow());
                    async move { Ok::<_, Infallible>(response) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    debug!("health connection: {error}");
                }
                drop(slot);
            });
        }
    }
}

fn respond(path: &str, ready: bool) -> Response<Full<Bytes>> {
    let (status, text) = match (path, ready) {
        ("/healthz", _) => (StatusCode::OK, "flanneld is running"),
        ("/readyz", true) => (StatusCode::OK, "flanneld is ready"),
        ("/readyz", false) => (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet"),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_answer_as_flannels_do() {
        for (path, ready, status) in
            [("/healthz", false, 200), ("/readyz", false, 503), ("/readyz", true, 200), ("/x", true, 404)]
        {
            assert_eq!(respond(path, ready).status(), status, "{path}");
        }
    }
}
