#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn read(method: Method, key: &str, query: &str, form: &str) -> Result<Request, ApiError> {
    parse(method, key, query, Some(form.as_bytes()))
}

fn op(method: Method, query: &str, form: &str) -> Op {
    match read(method, "/a", query, form).unwrap() {
        Request::Write { write, .. } => write.into_op(0),
        other => panic!("{other:?}"),
    }
}

/// etcd's table of checks (v2 API, section 2), in its order.
#[test]
fn checks_answer_with_etcds_code_and_cause() {
    use Method::{Delete, Get, Head, Post, Put};
    for (method, query, code, cause) in [
        (Get, "x=%zz", 210, "invalid URL escape \"%zz\""),
        (Put, "prevIndex=x&recursive=x", 203, "invalid value for \"prevIndex\""),
        (Get, "wait=true&waitIndex=-1", 203, "invalid value for \"waitIndex\""),
        (Get, "recursive=yes", 209, "invalid value for \"recursive\""),
        (Get, "sorted=", 209, "invalid value for \"sorted\""),
        (Get, "wait=x&dir=x", 209, "invalid value for \"wait\""),
        (Put, "dir=x", 209, "invalid value for \"dir\""),
        (Get, "quorum=x", 209, "invalid value for \"quorum\""),
        (Get, "stream=x", 209, "invalid value for \"stream\""),
        (Head, "wait=true", 209, "\"wait\" can only be used with GET requests"),
        (Delete, "prevValue=", 201, "\"prevValue\" cannot be empty"),
        (Put, "noValueOnSuccess=x", 209, "invalid value for \"noValueOnSuccess\""),
        (Put, "ttl=-1", 202, "invalid value for \"ttl\""),
        (Put, "ttl=1.5&prevExist=x", 202, "invalid value for \"ttl\""),
        (Post, "prevExist=x", 209, "invalid value for prevExist"),
        (Put, "refresh=x", 209, "invalid value for refresh"),
        (Put, "refresh=true&ttl=1&value=v", 211, "A value was provided on a refresh"),
        (Put, "refresh=true", 212, "No TTL value set"),
    ] {
        let error = read(method, "/a", query, "").unwrap_err();
        assert_eq!((error.code, error.cause.as_str(), error.index), (code, cause, 0), "{method:?} {query}");
    }
}

/// Ten mebibytes of names would be hundreds in memory if each were kept.
#[test]
fn a_form_is_kept_by_what_means_something() {
    let form = "x&value=1&value=2&y=z&".repeat(1000);
    let form = Form::new("value=3&ttl=4", Some(form.as_bytes())).unwrap();
    assert_eq!(form.pairs.len(), 2);
    assert_eq!((form.text("value"), form.text("ttl"), form.text("x")), ("1", "4", ""));
}

#[test]
fn a_key_that_is_too_deep_is_refused_before_it_is_replicated() {
    let key = "/a".repeat(6000);
    for method in [Method::Get, Method::Put, Method::Post, Method::Delete] {
        assert_eq!(read(method, &key, "recursive=true", "").unwrap_err().code, 209);
    }
}

/// etcd's table of dispatch (v2 API, section 3).
#[test]
fn requests_become_the_operations_that_etcd_carries_out() {
    use Method::{Delete, Get, Post, Put};
    assert!(matches!(op(Put, "prevExist=true", ""), Op::Update { .. }));
    assert!(matches!(
        op(Put, "prevExist=true&prevIndex=3", ""),
        Op::CompareAndSwap { prev_index: Some(3), .. }
    ));
    assert!(matches!(op(Put, "prevValue=x", ""), Op::CompareAndSwap { prev_index: None, .. }));
    assert!(matches!(op(Put, "prevExist=false&prevValue=x", ""), Op::Create { in_order: false, .. }));
    assert!(matches!(op(Put, "prevIndex=0", ""), Op::Set { .. }));
    assert!(matches!(op(Post, "prevValue=x", ""), Op::Create { in_order: true, .. }));
    assert!(matches!(op(Delete, "prevValue=x&recursive=true", ""), Op::CompareAndDelete { .. }));
    assert!(matches!(op(Delete, "recursive=true", ""), Op::Delete { dir: false, recursive: true, .. }));
    assert!(matches!(read(Get, "/", "quorum=true&wait=true", "").unwrap(), Request::QuorumGet(_)));
    assert!(matches!(read(Get, "/", "wait=true&waitIndex=7", "").unwrap(), Request::Watch { since: 7, .. }));
}

#[test]
fn the_body_wins_over_the_query_and_the_first_of_a_name_counts() {
    let value = |op: Op| match op {
        Op::Set { value, .. } => value,
        other => panic!("{other:?}"),
    };
    assert_eq!(value(op(Method::Put, "value=q", "value=b&value=c")), "b");
    assert_eq!(value(op(Method::Put, "value=q+1%2B", "")), "q 1+");
    let Op::Delete { recursive, .. } = op(Method::Delete, "", "recursive=true") else { panic!() };
    assert!(!recursive, "a DELETE body is ignored");
}

#[test]
fn times_are_made_absolute_and_what_does_not_fit_is_for_ever() {
    let expires = |query: &str| match read(Method::Put, "/a", query, "").unwrap() {
        Request::Write { write, .. } => match write.into_op(5) {
            Op::Set { expires_ns, .. } => expires_ns,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    assert_eq!(expires("ttl=2"), Some(2_000_000_005));
    assert_eq!(expires("ttl=0"), Some(5));
    assert_eq!(expires("ttl="), None);
    assert_eq!(expires("ttl=9300000000"), None);
    assert_eq!(expires("ttl=18446744073709551615"), None);
}

proptest! {
    #[test]
    fn noise_never_panics(key in any::<String>(), query in "[ -~]{0,60}", form in any::<Vec<u8>>()) {
        for method in [Method::Get, Method::Head, Method::Put, Method::Post, Method::Delete] {
            let _ = parse(method, &key, &query, Some(&form));
        }
    }

    #[test]
    fn values_arrive_as_they_were_sent(value in any::<String>()) {
        let form: String = form_urlencoded::Serializer::new(String::new()).append_pair("value", &value).finish();
        let Op::Set { value: got, .. } = op(Method::Put, "", &form) else { panic!() };
        prop_assert_eq!(got, value);
    }
}
