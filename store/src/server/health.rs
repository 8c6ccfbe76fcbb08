//! The body of `/health`: etcd's where there is nothing to say, and why where there is.

use std::fmt::Write as _;

use hyper::StatusCode;

use crate::machine::{AlarmKind, Alarms};
use crate::wire::json;

/// The image of the state cannot be written: a fault of the member itself that is not replicated and that etcd does not
/// have.
const IMAGE: &str = "IMAGE";

/// What a member knows of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own<'a> {
    /// Its id.
    pub(super) member: u64,
    /// Why it takes no writes, if there is no room for them.
    pub(super) room: Option<&'a str>,
    /// Why the image of its state cannot be written, if it cannot.
    pub(super) fault: Option<&'a str>,
    /// Whether a quorum has just confirmed a read.
    pub(super) serves: bool,
}

/// Something that is wrong with a member.
struct Reason<'a> {
    member: u64,
    kind: String,
    text: &'a str,
}

/// Status and body of the answer. `alarms` are those that all members know of.
///
/// A member is unhealthy if it cannot serve or has an alarm or a fault of its own. The alarms of others do not make it so,
/// for clients do better with it than with the others; but it tells them: together in the field `reason` as etcd 3.5 has
/// it, and one by one in `alarms`, for what reads them must not have to guess where a text ends.
pub(super) fn body(own: &Own<'_>, alarms: &Alarms) -> (StatusCode, String) {
    let reasons = reasons(own, alarms);
    let healthy = own.serves && reasons.iter().all(|reason| reason.member != own.member);
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if reasons.is_empty() {
        let body = if healthy { "{\"health\": \"true\"}" } else { "{\"health\": \"false\"}\n" };
        return (status, body.to_owned());
    }
    let words: Vec<String> = reasons
        .iter()
        .map(|Reason { member, kind, text }| format!("ALARM {kind} of member {member:x}: {text}"))
        .collect();
    let mut body = format!("{{\"health\": \"{healthy}\", \"reason\": ");
    json::write_string(&mut body, &words.join("; "));
    for (at, Reason { member, kind, text }) in reasons.iter().enumerate() {
        let before = if at > 0 { ", " } else { ", \"alarms\": [" };
        let _ = write!(body, "{before}{{\"member\": \"{member:x}\", \"alarm\": \"{kind}\", \"text\": ");
        json::write_string(&mut body, text);
        body.push('}');
    }
    body.push_str("]}\n");
    (status, body)
}

/// What is wrong, each thing once. Of its own room the member knows better than what it has told the others.
fn reasons<'a>(own: &Own<'a>, alarms: &'a Alarms) -> Vec<Reason<'a>> {
    let member = own.member;
    let room = own.room.map(|text| Reason { member, kind: AlarmKind::NoSpace.to_string(), text });
    let fault = own.fault.map(|text| Reason { member, kind: IMAGE.to_owned(), text });
    let told = alarms
        .iter()
        .filter(|&(id, kind, _)| own.room.is_none() || (id, kind) != (member, AlarmKind::NoSpace))
        .map(|(member, kind, text)| Reason { member, kind: kind.to_string(), text });
    room.into_iter().chain(told).chain(fault).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::machine::{AlarmKind, Machine, Position};
    use crate::membership::{Member, Membership};
    use crate::wire::command::{Command, Envelope, RequestId};

    /// Alarms of these kinds of the first of two members, and the ids of both.
    fn alarms_of_the_first(kinds: &[AlarmKind]) -> (Alarms, u64, u64) {
        let member = |n| Member::bootstrap(n, &[format!("http://{n}:1")], "t");
        let mut machine = Machine::bootstrap(Membership::bootstrap(vec![member("a"), member("b")]));
        let ids = machine.membership.ids();
        for (&kind, index) in kinds.iter().zip(9..) {
            let text = "a \"quoted\"; text".to_owned();
            let command = Command::Alarm { member: ids[0], kind, raise: true, text };
            let entry = Envelope { id: RequestId { member: 0, number: 0 }, command }.encode();
            machine.apply(Position { index, term: 1 }, &entry).unwrap();
        }
        (machine.alarms, ids[0], ids[1])
    }

    fn fine(member: u64) -> Own<'static> {
        Own { member, room: None, fault: None, serves: true }
    }

    fn json(own: &Own<'_>, alarms: &Alarms) -> (u16, serde_json::Value) {
        let (status, text) = body(own, alarms);
        (status.as_u16(), serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn without_alarms_the_body_is_etcds() {
        let (none, me, _) = alarms_of_the_first(&[]);
        assert_eq!(body(&fine(me), &none), (StatusCode::OK, "{\"health\": \"true\"}".to_owned()));
        let (status, text) = body(&Own { serves: false, ..fine(me) }, &none);
        assert_eq!((status.as_u16(), text.as_str()), (503, "{\"health\": \"false\"}\n"));
    }

    #[test]
    fn an_alarm_makes_its_member_unhealthy_and_is_told_by_all() {
        let (alarms, bad, good) = alarms_of_the_first(&[AlarmKind::Corrupt]);
        for (member, status, health) in [(bad, 503, "false"), (good, 200, "true")] {
            let (got, said) = json(&fine(member), &alarms);
            assert_eq!((got, said["health"].as_str()), (status, Some(health)));
            let text = "a \"quoted\"; text";
            assert_eq!(said["reason"], format!("ALARM CORRUPT of member {bad:x}: {text}"));
            let one = serde_json::json!([{"member": format!("{bad:x}"), "alarm": "CORRUPT", "text": text}]);
            assert_eq!(said["alarms"], one);
        }
    }

    #[test]
    fn a_member_without_room_says_so_once_and_keeps_nothing_else_back() {
        let (alarms, me, other) = alarms_of_the_first(&[AlarmKind::NoSpace, AlarmKind::Corrupt]);
        let (status, said) = json(&Own { room: Some("no space: 3 MiB"), serves: false, ..fine(me) }, &alarms);
        let kinds = |said: &serde_json::Value| -> Vec<String> {
            let all = said["alarms"].as_array().unwrap();
            all.iter().map(|one| format!("{} {}", one["member"], one["alarm"]).replace('"', "")).collect()
        };
        assert_eq!((status, kinds(&said)), (503, vec![format!("{me:x} NOSPACE"), format!("{me:x} CORRUPT")]));
        assert_eq!(said["alarms"][0]["text"], "no space: 3 MiB", "as it is now");
        // The room of one is not that of another.
        let (_, said) = json(&Own { room: Some("no space: 9 MiB"), serves: false, ..fine(other) }, &alarms);
        assert_eq!(kinds(&said).len(), 3, "{said}");
    }

    #[test]
    fn a_fault_of_its_own_disk_is_a_reason() {
        let (none, me, _) = alarms_of_the_first(&[]);
        let (status, said) = json(&Own { fault: Some("no space"), ..fine(me) }, &none);
        assert_eq!((status, &said["alarms"][0]["alarm"]), (503, &"IMAGE".into()));
        assert_eq!(said["reason"], format!("ALARM IMAGE of member {me:x}: no space"));
    }
}
