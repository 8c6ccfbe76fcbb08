//! The client against scripted servers: what it sends, what it makes of the answers, when it moves on.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::*;

/// What a scripted server does with a request.
#[derive(Clone, Debug)]
enum Reply {
    /// Answers and keeps the connection.
    Answer(u16, &'static str),
    /// Answers and closes the connection.
    AnswerAndClose(u16, &'static str),
    /// Reads the request and closes the connection.
    Close,
    /// Never answers.
    Hang,
    /// Sends headers at once, and the body this much later.
    Later(Duration, &'static str),
}

/// A server on loopback that plays its replies in order and notes what it was asked.
struct Server {
    url: String,
    /// `(connection number, request line and body)`.
    seen: Arc<Mutex<Vec<(usize, String)>>>,
}

impl Server {
    fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let replies: Arc<Mutex<VecDeque<Reply>>> = Arc::new(Mutex::new(replies.into_iter().collect()));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let (replies, noted) = (replies.clone(), noted.clone());
                thread::spawn(move || serve(number, stream.unwrap(), &replies, &noted));
            }
        });
        Self { url, seen }
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|(_, request)| request.clone()).collect()
    }

    fn connections(&self) -> usize {
        self.seen.lock().unwrap().iter().map(|(number, _)| number + 1).max().unwrap_or(0)
    }
}

fn serve(
    number: usize,
    stream: TcpStream,
    replies: &Mutex<VecDeque<Reply>>,
    seen: &Mutex<Vec<(usize, String)>>,
) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).ok()? == 0 {
            return None;
        }
        let mut length = 0;
        let mut notes = String::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let line = line.trim().to_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            if line.starts_with("authorization: ") {
                notes.push_str(" +auth");
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let line = first.trim().trim_end_matches(" HTTP/1.1");
        let request = format!("{line} {}", String::from_utf8(body).unwrap());
        seen.lock().unwrap().push((number, format!("{}{notes}", request.trim_end())));
        let reply = replies.lock().unwrap().pop_front().expect("more requests than replies");
        let head = |status: u16, length: usize| {
            format!(
                "HTTP/1.1 {status} X\r\nX-Etcd-Index: 17\r\nX-Raft-Index: 40\r\nX-Etcd-Cluster-Id: cdf8\r\n\
                 Content-Length: {length}\r\n\r\n"
            )
        };
        match reply {
            Reply::Answer(status, body) => {
                stream.write_all((head(status, body.len()) + body).as_bytes()).ok()?;
            }
            Reply::AnswerAndClose(status, body) => {
                stream.write_all((head(status, body.len()) + body).as_bytes()).ok()?;
                return None;
            }
            Reply::Close => return None,
            Reply::Hang => loop {
                thread::park();
            },
            Reply::Later(delay, body) => {
                stream.write_all(head(200, body.len()).as_bytes()).ok()?;
                thread::sleep(delay);
                stream.write_all(body.as_bytes()).ok()?;
            }
        }
    }
}

const SET: &str = r#"{"action":"set","node":{"key":"/a","value":"1","modifiedIndex":17,"createdIndex":17}}"#;
const NO_LEADER: &str =
    r#"{"errorCode":300,"message":"Raft Internal Error","cause":"etcdserver: request timed out","index":0}"#;

/// An endpoint where nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn client(endpoints: &[&str]) -> Client {
    Client::new(Config {
        endpoints: endpoints.iter().map(|&url| url.to_owned()).collect(),
        request_timeout: Some(Duration::from_secs(2)),
        ..Config::default()
    })
    .unwrap()
}

fn create() -> PutOptions {
    PutOptions { value: Some("1".into()), prev_exist: Some(false), ..PutOptions::default() }
}

#[tokio::test]
async fn an_answer_is_read_with_its_headers() {
    let server = Server::start([Reply::Answer(
        200,
        r#"{"action":"get","node":{"key":"/d","dir":true,"nodes":[{"key":"/d/x","value":"","expiration":"2026-11-23T03:34:43.1Z","ttl":-1,"modifiedIndex":9,"createdIndex":8}],"modifiedIndex":6,"createdIndex":6},"later":1}"#,
    )]);
    let response = client(&[&server.url]).get("/d", GetOptions::default()).await.unwrap();
    assert_eq!(
        (response.action.as_str(), response.etcd_index, response.raft_index, response.cluster_id.as_str()),
        ("get", 17, 40, "cdf8")
    );
    let dir = response.node.unwrap();
    assert!(dir.dir && dir.value.is_none());
    let file = &dir.nodes[0];
    assert_eq!(
        (file.key.as_str(), file.value.as_deref(), file.ttl, file.modified_index, file.created_index),
        ("/d/x", Some(""), Some(-1), 9, 8)
    );
    assert_eq!(file.expiration.as_deref(), Some("2026-11-23T03:34:43.1Z"));
}

#[tokio::test]
async fn requests_are_written_as_etcds_client_writes_them() {
    let server = Server::start(vec![Reply::Answer(200, SET); 9]);
    let client = client(&[&server.url]);
    client.get("/a b", GetOptions { recursive: true, sorted: false, quorum: true }).await.unwrap();
    client
        .put("/a", PutOptions { value: Some("x&y =%".into()), ttl: Some(5), ..PutOptions::default() })
        .await
        .unwrap();
    client
        .put("/a", PutOptions { dir: true, prev_exist: Some(true), ttl_empty: true, ..PutOptions::default() })
        .await
        .unwrap();
    let swap = PutOptions {
        value: Some("2".into()),
        prev_value: Some("1".into()),
        prev_index: Some(7),
        ..PutOptions::default()
    };
    client.put("/a", swap).await.unwrap();
    client
        .put(
            "/a",
            PutOptions { refresh: true, ttl: Some(9), prev_exist: Some(true), ..PutOptions::default() },
        )
        .await
        .unwrap();
    client.post("/q/", "v", None).await.unwrap();
    client
        .delete("/a", DeleteOptions { dir: true, recursive: true, ..DeleteOptions::default() })
        .await
        .unwrap();
    client
        .delete(
            "/a",
            DeleteOptions { prev_value: Some("1".into()), prev_index: Some(3), ..DeleteOptions::default() },
        )
        .await
        .unwrap();
    client.watch_once("/a", Some(18), false).await.unwrap();
    assert_eq!(
        server.requests(),
        [
            "GET /v2/keys/a%20b?quorum=true&recursive=true&sorted=false",
            "PUT /v2/keys/a ttl=5&value=x%26y+%3D%25",
            "PUT /v2/keys/a?dir=true&prevExist=true ttl=",
            "PUT /v2/keys/a?prevIndex=7&prevValue=1 value=2",
            "PUT /v2/keys/a?prevExist=true refresh=true&ttl=9",
            "POST /v2/keys/q/ value=v",
            "DELETE /v2/keys/a?dir=true&recursive=true",
            "DELETE /v2/keys/a?prevIndex=3&prevValue=1",
            "GET /v2/keys/a?recursive=false&wait=true&waitIndex=18",
        ]
    );
    assert_eq!(server.connections(), 1, "one connection serves them all");
}

#[tokio::test]
async fn credentials_go_with_every_request() {
    let server = Server::start([Reply::Answer(200, SET)]);
    let config = Config {
        endpoints: vec![server.url.clone()],
        username: Some("root".into()),
        password: Some("secret".into()),
        ..Config::default()
    };
    assert!(!format!("{config:?}").contains("secret"));
    Client::new(config).unwrap().get("/a", GetOptions::default()).await.unwrap();
    assert!(server.requests()[0].ends_with(" +auth"));
}

#[tokio::test]
async fn reads_and_plain_writes_try_every_endpoint_and_stay_with_the_one_that_works() {
    let (first, second) = (
        Server::start([Reply::Answer(500, NO_LEADER), Reply::Close, Reply::Close]),
        Server::start(vec![Reply::Answer(200, SET); 3]),
    );
    let client = client(&[&nobody(), &first.url, &second.url]);
    client.get("/a", GetOptions::default()).await.unwrap();
    client.put("/a", PutOptions::default()).await.unwrap();
    assert_eq!((first.requests().len(), second.requests().len()), (1, 2), "it stays with the second");
    let client = client.with_endpoints(&[first.url.clone(), second.url.clone()]).unwrap();
    client.put("/a", PutOptions::default()).await.unwrap();
    assert_eq!(
        (first.requests().len(), second.requests().len()),
        (3, 3),
        "a lost plain write is repeated: on a new connection in place of the idle one, then elsewhere"
    );
}

#[tokio::test]
async fn a_request_that_must_not_happen_twice_is_never_repeated() {
    for reply in [Reply::Close, Reply::Hang] {
        let (first, second) =
            (Server::start(vec![reply.clone(); 3]), Server::start(vec![Reply::Answer(200, SET); 3]));
        let fresh = || client(&[&first.url, &second.url]);
        let lost = [
            fresh().put("/a", create()).await,
            fresh().post("/q", "1", None).await,
            fresh().delete("/a", DeleteOptions::default()).await,
        ];
        for result in lost {
            assert!(
                matches!(&result, Err(ClientError::Unanswered { endpoint, .. }) if *endpoint == first.url),
                "{result:?}"
            );
        }
        assert_eq!((first.requests().len(), second.requests().len()), (3, 0), "{reply:?}");
    }
}

#[tokio::test]
async fn a_request_that_was_never_sent_may_move_on() {
    let server = Server::start(vec![Reply::Answer(200, SET); 3]);
    let client = client(&[&nobody(), &server.url]);
    client.put("/a", create()).await.unwrap();
    client.post("/q", "1", None).await.unwrap();
    client.delete("/a", DeleteOptions::default()).await.unwrap();
}

#[tokio::test]
async fn a_member_without_leader_answers_a_create_and_is_passed_over_next_time() {
    let (first, second) =
        (Server::start([Reply::Answer(500, NO_LEADER)]), Server::start([Reply::Answer(200, SET)]));
    let client = client(&[&first.url, &second.url]);
    let error = client.put("/a", create()).await.unwrap_err();
    assert_eq!(error.api_code(), Some(300));
    client.put("/a", create()).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_the_server_closed_is_replaced() {
    let server = Server::start([
        Reply::AnswerAndClose(200, SET),
        Reply::AnswerAndClose(200, SET),
        Reply::Answer(200, SET),
    ]);
    let client = client(&[&server.url]);
    for _ in 0..3 {
        client.get("/a", GetOptions::default()).await.unwrap();
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn a_silent_endpoint_costs_one_request_timeout() {
    let (silent, good) = (Server::start([Reply::Hang]), Server::start([Reply::Answer(200, SET)]));
    let started = tokio::time::Instant::now();
    client(&[&silent.url, &good.url]).get("/a", GetOptions::default()).await.unwrap();
    let took = started.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_secs(5)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_watch_outlives_the_request_timeout() {
    let late = Duration::from_millis(800);
    let server = Server::start([
        Reply::Later(late, SET),
        Reply::Answer(200, ""),
        Reply::Answer(
            400,
            r#"{"errorCode":401,"message":"The event in requested index is outdated and cleared","cause":"the requested history has been cleared [78/5]","index":1077}"#,
        ),
    ]);
    let client = client(&[&server.url]);
    let event = client.watch_once("/a", None, true).await.unwrap().unwrap();
    assert_eq!(event.node.unwrap().modified_index, 17);
    assert_eq!(client.watch_once("/a", None, true).await, Ok(None), "closed without an event");
    let error = client.watch_once("/a", Some(5), true).await.unwrap_err();
    assert_eq!(error.api_code(), Some(401));
    assert!(matches!(error, ClientError::Api { index: 1077, status: 400, .. }));
}

#[tokio::test]
async fn errors_carry_what_the_server_said() {
    let server = Server::start([
        Reply::Answer(404, r#"{"errorCode":100,"message":"Key not found","cause":"/nokey","index":20}"#),
        Reply::Answer(404, "404 page not found\n"),
        Reply::Answer(200, "<html>"),
        Reply::Answer(307, ""),
        Reply::Answer(503, r#"{"message":"During election"}"#),
    ]);
    let client = client(&[&server.url]);
    let error = client.get("/nokey", GetOptions::default()).await.unwrap_err();
    assert!(error.is_key_not_found());
    assert_eq!(error.to_string(), "100: Key not found (/nokey) [20]");
    let error = client.get("/a", GetOptions::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}: HTTP status 404: 404 page not found", server.url),
        "v2 switched off"
    );
    let error = client.get("/a", GetOptions::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::Decode { .. }), "{error:?}");
    let error = client.get("/a", GetOptions::default()).await.unwrap_err();
    assert!(matches!(error, ClientError::Http { status: 307, .. }), "{error:?}");
    let error = client.leader().await.unwrap_err();
    assert!(error.to_string().contains("During election"), "{error}");
}

#[tokio::test]
async fn unavailable_names_every_endpoint_in_etcds_words() {
    let (a, b) = (nobody(), nobody());
    let error = client(&[&a, &b]).get("/a", GetOptions::default()).await.unwrap_err();
    let dial =
        |url: &str| format!("dial tcp {}: connect: connection refused", url.trim_start_matches("http://"));
    assert_eq!(
        error.to_string(),
        format!(
            "client: etcd cluster is unavailable or misconfigured; error #0: {}\n; error #1: {}",
            dial(&a),
            dial(&b)
        )
    );
}

#[tokio::test]
async fn members_and_health_and_version_are_read() {
    let server = Server::start([
        Reply::Answer(
            200,
            r#"{"members":[{"id":"628170c800dbcee","name":"n1","peerURLs":["http://p"],"clientURLs":["http://c"]},{"id":"2","name":"","peerURLs":["http://q"],"clientURLs":null}]}"#,
        ),
        Reply::Answer(200, r#"{"health": "true"}"#),
        Reply::Answer(200, r#"{"health":true,"reason":""}"#),
        Reply::Answer(503, "{\"health\": \"false\"}\n"),
        Reply::Answer(503, r#"{"health": "false", "reason": "a; b"}"#),
        Reply::Answer(
            503,
            r#"{"health": "false", "reason": "a; b", "alarms": [{"member": "1f", "alarm": "CORRUPT", "text": "a; b"}]}"#,
        ),
        Reply::Answer(404, "404 page not found"),
        Reply::Answer(200, r#"{"etcdserver":"3.2.12","etcdcluster":"3.2.0"}"#),
        Reply::Answer(404, "body"),
    ]);
    let client = client(&[&nobody(), &server.url]);
    let members = client.members().await.unwrap();
    assert_eq!(
        (members[0].id.as_str(), members[0].client_urls.as_slice()),
        ("628170c800dbcee", ["http://c".to_owned()].as_slice())
    );
    assert!(members[1].client_urls.is_empty());
    let alarm = |member: &str, alarm: &str| Alarm {
        member: member.to_owned(),
        alarm: alarm.to_owned(),
        text: "a; b".to_owned(),
    };
    for (healthy, reason, alarms) in [
        (true, "", vec![]),
        (true, "", vec![]),
        (false, "", vec![]),
        (false, "a; b", vec![alarm("", "")]),
        (false, "a; b", vec![alarm("1f", "CORRUPT")]),
    ] {
        let health = Health { healthy, reason: reason.to_owned(), alarms };
        assert_eq!(client.health(&server.url).await, Ok(health));
    }
    assert!(matches!(client.health(&server.url).await, Err(ClientError::Http { status: 404, .. })));
    assert_eq!(client.version(&server.url).await.as_deref(), Ok("3.2.12"));
    assert_eq!(client.raw_get(&format!("{}/x?y=1", server.url)).await, Ok((404, b"body".to_vec())));
    assert_eq!(server.requests().last().unwrap(), "GET /x?y=1");
}
