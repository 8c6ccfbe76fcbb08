//! The handful of v2 key calls that tests make, over plain HTTP.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http::{self, Reply, Request};
use crate::ns::Namespace;

/// Longer than etcd's own request timeout (7 s), so that its answer and not ours is seen.
const LIMIT: Duration = Duration::from_secs(10);

/// A member's plain client URL, reached from inside a namespace.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// Where the connection is made from; `None` is the test's own namespace.
    pub ns: Option<&'a Namespace>,
    /// The address.
    pub address: SocketAddr,
}

impl Endpoint<'_> {
    /// One request; any status is a success.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn send(&self, request: &Request<'_>) -> Result<Reply> {
        http::send(self.ns, self.address, request, LIMIT)
    }

    /// GET of `target`, any status.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, target: &str) -> Result<Reply> {
        self.send(&Request { target, ..Request::default() })
    }

    /// Sets `key` (which starts with `/`) to `value`; returns the event.
    ///
    /// # Errors
    /// When there is no answer, or it is no success.
    pub fn set(&self, key: &str, value: &str) -> Result<Value> {
        let body = format!("value={value}");
        let target = format!("/v2/keys{key}");
        let form = Some(("application/x-www-form-urlencoded", body.as_str()));
        let reply =
            self.send(&Request { method: "PUT", target: &target, body: form, ..Request::default() })?;
        if !matches!(reply.status, 200 | 201) {
            bail!("set {key}: status {}: {}", reply.status, reply.text().trim_end());
        }
        reply.json()
    }

    /// The value of `key`, read from this member alone or (`quorum`) through the leader.
    ///
    /// # Errors
    /// When there is no answer, or no such key.
    pub fn value(&self, key: &str, quorum: bool) -> Result<String> {
        let reply = self.get(&format!("/v2/keys{key}?quorum={quorum}"))?;
        if reply.status != 200 {
            bail!("get {key}: status {}: {}", reply.status, reply.text().trim_end());
        }
        let value = reply.json()?["node"]["value"].as_str().map(str::to_owned);
        value.with_context(|| format!("get {key}: no value in {}", reply.text()))
    }

    /// Name and id of the leader this member believes in.
    ///
    /// # Errors
    /// When there is no answer, or no leader.
    pub fn leader(&self) -> Result<(String, String)> {
        let reply = self.get("/v2/members/leader")?;
        if reply.status != 200 {
            bail!("leader: status {}: {}", reply.status, reply.text());
        }
        let json = reply.json()?;
        let text =
            |name: &str| json[name].as_str().map(str::to_owned).with_context(|| format!("leader's {name}"));
        Ok((text("name")?, text("id")?))
    }

    /// Succeeds when the member says that it is healthy.
    ///
    /// # Errors
    /// When there is no answer, or it is not healthy.
    pub fn healthy(&self) -> Result<()> {
        let reply = self.get("/health")?;
        let health = reply.json()?["health"].clone();
        if reply.status == 200 && (health == "true" || health == true) {
            return Ok(());
        }
        bail!("health: status {}: {}", reply.status, reply.text())
    }
}
