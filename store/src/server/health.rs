//! The body of `/health`: etcd's where there is nothing to say, and why where there is.

use hyper::StatusCode;

use crate::machine::Alarms;
use crate::wire::json;

/// What a member says of itself. `serves` is whether a quorum has just confirmed a read, `fault` what is wrong here and not
/// replicated.
///
/// A member is unhealthy if it cannot serve or has an alarm or a fault of its own. The alarms of others do not make it so,
/// for clients do better with it than with the others; but it tells them, in the field `reason` as etcd 3.5 has it.
pub(super) fn body(member: u64, alarms: &Alarms, fault: Option<&str>, serves: bool) -> (StatusCode, String) {
    let has_alarm = alarms.iter().any(|(id, ..)| id == member);
    let healthy = serves && !has_alarm && fault.is_none();
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut reasons = Vec::new();
    if !alarms.is_empty() {
        reasons.push(alarms.to_string());
    }
    if let Some(fault) = fault {
        reasons.push(format!("the image of the state cannot be written: {fault}"));
    }
    let body = match (healthy, reasons.is_empty()) {
        (true, true) => "{\"health\": \"true\"}".to_owned(),
        (false, true) => "{\"health\": \"false\"}\n".to_owned(),
        (healthy, false) => {
            let mut body = format!("{{\"health\": \"{healthy}\", \"reason\": ");
            json::write_string(&mut body, &reasons.join("; "));
            body.push_str("}\n");
            body
        }
    };
    (status, body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::machine::{AlarmKind, Machine, Position};
    use crate::membership::{Member, Membership};
    use crate::wire::command::{Command, Envelope, RequestId};

    fn alarms_of_the_first(raised: bool) -> (Alarms, u64, u64) {
        let member = |n| Member::bootstrap(n, &[format!("http://{n}:1")], "t");
        let mut machine = Machine::bootstrap(Membership::bootstrap(vec![member("a"), member("b")]));
        let ids = machine.membership.ids();
        let text = "a \"quoted\" text".to_owned();
        let command = Command::Alarm { member: ids[0], kind: AlarmKind::Corrupt, raise: raised, text };
        let entry = Envelope { id: RequestId { member: 0, number: 0 }, command }.encode();
        machine.apply(Position { index: 9, term: 1 }, &entry).unwrap();
        (machine.alarms, ids[0], ids[1])
    }

    #[test]
    fn without_alarms_the_body_is_etcds() {
        let (none, me, _) = alarms_of_the_first(false);
        assert_eq!(body(me, &none, None, true), (StatusCode::OK, "{\"health\": \"true\"}".to_owned()));
        let (status, text) = body(me, &none, None, false);
        assert_eq!((status.as_u16(), text.as_str()), (503, "{\"health\": \"false\"}\n"));
    }

    #[test]
    fn an_alarm_makes_its_member_unhealthy_and_is_told_by_all() {
        let (alarms, bad, good) = alarms_of_the_first(true);
        for (member, status, health) in [(bad, 503, "false"), (good, 200, "true")] {
            let (got, text) = body(member, &alarms, None, true);
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!((got.as_u16(), parsed["health"].as_str()), (status, Some(health)));
            let reason = format!("ALARM CORRUPT of member {bad:x}: a \"quoted\" text");
            assert_eq!(parsed["reason"].as_str(), Some(reason.as_str()));
        }
    }

    #[test]
    fn a_fault_of_its_own_disk_is_a_reason() {
        let (none, me, _) = alarms_of_the_first(false);
        let (status, text) = body(me, &none, Some("no space"), true);
        assert_eq!(status.as_u16(), 503);
        assert!(text.contains("cannot be written: no space"), "{text}");
    }
}
