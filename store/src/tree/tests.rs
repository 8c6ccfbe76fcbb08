#![allow(clippy::unwrap_used, reason = "tests")]

//! The tree against etcd's rules, one by one, and against a plain map over random operations.

use std::collections::BTreeMap;
use std::sync::Mutex;

use proptest::prelude::*;

use super::watch::WatchRequest;
use super::*;

fn set(path: &str, value: &str) -> Op {
    Op::Set { path: path.into(), dir: false, value: value.into(), expires_ns: None, refresh: false }
}

fn mkdir(path: &str) -> Op {
    Op::Set { path: path.into(), dir: true, value: String::new(), expires_ns: None, refresh: false }
}

fn delete(path: &str, dir: bool, recursive: bool) -> Op {
    Op::Delete { path: path.into(), dir, recursive }
}

fn swap(path: &str, prev_value: Option<&str>, prev_index: Option<u64>) -> Op {
    Op::CompareAndSwap {
        path: path.into(),
        prev_value: prev_value.map(Into::into),
        prev_index,
        value: "new".into(),
        expires_ns: None,
        refresh: false,
    }
}

/// What a look shows.
fn look(tree: &Tree, path: &str, recursive: bool) -> NodeView {
    fn view(at: &str, shown: Shown<'_>) -> NodeView {
        let mut node = shown.node.view(at);
        // A loop takes less of the stack for each level than collecting does, also without optimisation.
        for (name, child) in shown.children() {
            node.nodes.push(view(&path::join(at, name), child));
        }
        node
    }
    let node = tree.look(path, recursive).unwrap();
    view(node.path(), node.shown())
}

fn failure(tree: &mut Tree, op: &Op) -> (u32, String) {
    let before = (tree.index(), tree.stored_nodes());
    let error = tree.apply(op).unwrap_err();
    assert_eq!((tree.index(), tree.stored_nodes()), before, "a failed operation changes nothing");
    assert_eq!(error.index, tree.index());
    (error.code.number(), error.cause)
}

#[test]
fn parents_are_made_with_the_same_index_and_without_events() {
    let mut tree = Tree::new();
    let event = tree.apply(&set("/1/a/b/c", "1")).unwrap().event;
    assert_eq!((event.index(), tree.index()), (1, 1));
    let parent = look(&tree, "/1/a/b", false);
    assert!(parent.dir && parent.created == 1 && parent.modified == 1);
    assert_eq!(tree.history().iter().count(), 1);
}

#[test]
fn set_resets_the_creation_and_update_keeps_it() {
    let mut tree = Tree::new();
    tree.apply(&set("/1/a", "1")).unwrap();
    let again = tree.apply(&set("/1/a", "2")).unwrap().event;
    assert_eq!((again.node.created, again.prev.as_ref().unwrap().value.as_deref()), (2, Some("1")));
    assert!(!again.is_creation());
    let update = Op::Update { path: "/1/a".into(), value: "3".into(), expires_ns: None, refresh: false };
    let updated = tree.apply(&update).unwrap().event;
    assert_eq!((updated.node.created, updated.node.modified), (2, 3));
    let swapped = tree.apply(&swap("/1/a", Some("3"), Some(3))).unwrap().event;
    assert_eq!((swapped.node.created, swapped.action), (2, Action::CompareAndSwap));
}

#[test]
fn refusals_have_etcds_code_and_cause() {
    let mut tree = Tree::new();
    tree.apply(&set("/1/f", "v")).unwrap();
    tree.apply(&set("/1/d/x", "v")).unwrap();
    let create = |path: &str| Op::Create {
        path: path.into(),
        dir: false,
        value: String::new(),
        expires_ns: None,
        in_order: false,
    };
    let update = |path: &str, value: &str| Op::Update {
        path: path.into(),
        value: value.into(),
        expires_ns: None,
        refresh: false,
    };
    let refresh = Op::Set {
        path: "/1/no".into(),
        dir: false,
        value: String::new(),
        expires_ns: Some(1),
        refresh: true,
    };
    let forget = Op::CompareAndDelete { path: "/1".into(), prev_value: Some("x".into()), prev_index: None };
    for (op, want) in [
        (set("/1/f/below", ""), (104, "/1/f")),
        (set("/1/d", ""), (102, "/1/d")),
        (mkdir("/1/d"), (102, "/1/d")),
        (set("/1", ""), (107, "/")),
        (create("/1/f"), (105, "/1/f")),
        (create("/1/d"), (105, "/1/d")),
        (create("/1"), (107, "/")),
        (update("/1/no/such", ""), (100, "/1/no")),
        (update("/1/d", "value"), (102, "/1/d")),
        (delete("/1/d", false, false), (102, "/1/d")),
        (delete("/1/d", true, false), (108, "/1/d")),
        (delete("/1", true, true), (107, "/")),
        (delete("/1/f/x", false, false), (104, "/1/f")),
        (swap("/1/d", Some("x"), None), (102, "/1/d")),
        (swap("/1/f", Some("q"), None), (101, "[q != v]")),
        (swap("/1/f", None, Some(10)), (101, "[10 != 1]")),
        (swap("/1/f", Some("q"), Some(10)), (101, "[q != v] [10 != 1]")),
        (swap("/1/no", Some("q"), None), (100, "/1/no")),
        (refresh, (100, "/1/no")),
        (forget, (102, "/1")),
    ] {
        let (code, cause) = failure(&mut tree, &op);
        assert_eq!((code, cause.as_str()), want, "{op:?}");
    }
    assert_eq!(tree.look("/1/d/y/z", false).unwrap_err().cause, "/1/d/y");
    assert_eq!(tree.look("/1/f/y", false).unwrap_err().code, Code::NotADirectory);
}

#[test]
fn a_file_can_become_a_directory_and_in_order_keys_have_twenty_digits() {
    let mut tree = Tree::new();
    tree.apply(&set("/1/a", "1")).unwrap();
    let event = tree.apply(&mkdir("/1/a")).unwrap().event;
    assert_eq!(event.prev.as_ref().unwrap().value.as_deref(), Some("1"));
    let queue =
        Op::Create { path: "/1/q".into(), dir: false, value: "v".into(), expires_ns: None, in_order: true };
    assert_eq!(tree.apply(&queue).unwrap().event.node.path, "/1/q/00000000000000000003");
    let root =
        Op::Create { path: "/1".into(), dir: true, value: String::new(), expires_ns: None, in_order: true };
    assert_eq!(tree.apply(&root).unwrap().event.node.path, "/1/00000000000000000004");
}

#[test]
fn updating_a_directory_shows_an_index_that_it_does_not_keep() {
    let mut tree = Tree::new();
    tree.apply(&mkdir("/1/d")).unwrap();
    let update =
        Op::Update { path: "/1/d".into(), value: String::new(), expires_ns: Some(9), refresh: false };
    assert_eq!(tree.apply(&update).unwrap().event.node.modified, 2);
    assert_eq!(look(&tree, "/1/d", false).modified, 1);
    assert!(tree.has_expiries());
}

/// Sets an empty node that expires.
fn until(path: &str, dir: bool, at: i64) -> Op {
    Op::Set { path: path.into(), dir, value: String::new(), expires_ns: Some(at), refresh: false }
}

#[test]
fn expiry_goes_by_time_and_takes_a_directory_in_one_event() {
    let mut tree = Tree::new();
    tree.apply(&until("/1/d", true, 30)).unwrap();
    tree.apply(&until("/1/d/x", false, 40)).unwrap();
    tree.apply(&until("/1/late", false, 50)).unwrap();
    tree.apply(&until("/1/early", false, 20)).unwrap();
    assert_eq!(tree.next_expiry(), Some(20));
    assert!(tree.expire(19, usize::MAX).is_empty());
    let gone: Vec<String> = tree.expire(45, usize::MAX).iter().map(|o| o.event.node.path.clone()).collect();
    assert_eq!(gone, ["/1/early", "/1/d"]);
    assert_eq!(tree.index(), 6);
    tree.apply(&set("/1/late", "stays")).unwrap();
    assert!(!tree.has_expiries() && tree.expire(i64::MAX, usize::MAX).is_empty());
    assert_eq!(tree.next_expiry(), None);
}

#[test]
fn no_more_expires_at_once_than_asked_for_but_a_directory_goes_whole() {
    let mut tree = Tree::new();
    tree.apply(&until("/1/d", true, 12)).unwrap();
    (0..5).for_each(|n| drop(tree.apply(&set(&format!("/1/d/{n}"), "x")).unwrap()));
    for (name, at) in [("a", 11), ("b", 13), ("c", 14), ("e", 20)] {
        tree.apply(&until(&format!("/1/{name}"), false, at)).unwrap();
    }
    let mut gone = || -> Vec<String> {
        tree.expire(15, 2).iter().map(|outcome| outcome.event.node.path.clone()).collect()
    };
    assert_eq!(gone(), ["/1/a", "/1/d"]);
    assert_eq!(gone(), ["/1/b", "/1/c"]);
    assert_eq!(gone(), [""; 0]);
    assert_eq!(tree.next_expiry(), Some(20));
}

#[test]
fn hidden_names_are_left_out_of_listings_but_not_of_themselves() {
    let mut tree = Tree::new();
    tree.apply(&set("/1/_h/x", "1")).unwrap();
    tree.apply(&set("/1/d/_y", "1")).unwrap();
    assert_eq!(look(&tree, "/1", true).nodes.len(), 1);
    assert!(look(&tree, "/1", true).nodes[0].nodes.is_empty());
    assert_eq!(look(&tree, "/1/_h", false).nodes.len(), 1);
    assert_eq!(tree.look("/1", true).unwrap().shown().entries(), 2, "the hidden one too");
}

#[test]
fn a_look_stands_still_while_the_tree_goes_on() {
    let mut tree = Tree::new();
    tree.apply(&set("/1/d/a", "1")).unwrap();
    let before = tree.look("/1/d", true).unwrap();
    tree.apply(&set("/1/d/a", "2")).unwrap();
    tree.apply(&set("/1/d/b", "3")).unwrap();
    let values = |node: &FrozenNode| -> Vec<String> {
        node.shown()
            .children()
            .map(|(name, child)| format!("{name}={}", child.node.value().unwrap()))
            .collect()
    };
    assert_eq!(values(&before), ["a=1"]);
    assert_eq!(values(&tree.look("/1/d", true).unwrap()), ["a=2", "b=3"]);
    tree.apply(&delete("/1/d", true, true)).unwrap();
    assert_eq!(values(&before), ["a=1"]);
}

/// Remembers the indexes it was given, up to a limit.
struct Reader<'a>(&'a Mutex<Vec<u64>>, usize);

impl Sink for Reader<'_> {
    fn deliver(&self, event: &std::sync::Arc<Event>) -> bool {
        let mut seen = self.0.lock().unwrap();
        seen.push(event.index());
        seen.len() < self.1
    }
}

#[test]
fn watchers_hear_what_concerns_them_once() {
    let mut tree = Tree::new();
    let mut hub = Hub::default();
    let logs: Vec<Mutex<Vec<u64>>> = (0..7).map(|_| Mutex::default()).collect();
    let watch =
        |path: &str, recursive, stream, since| WatchRequest { path: path.into(), recursive, stream, since };
    for (log, request) in logs.iter().zip([
        watch("/1", true, true, 0),
        watch("/1/d", false, true, 0),
        watch("/1/d/x", false, true, 0),
        watch("/1/d/_h", true, true, 0),
        watch("/1/d/x", false, false, 0),
        watch("/1", true, true, 4),
        watch("/", true, true, 0),
    ]) {
        hub.add(request, Reader(log, 100));
    }
    for op in [
        set("/1/d/x", "1"),  // 1
        set("/1/d/_h", "1"), // 2: hidden from above
        Op::Set {
            path: "/1/d/x".into(),
            dir: false,
            value: String::new(),
            expires_ns: Some(1),
            refresh: true,
        }, // 3
        set("/1/d/x", "2"),  // 4
        delete("/1/d", true, true), // 5: everyone below is told
    ] {
        hub.notify(&tree.apply(&op).unwrap());
    }
    let seen: Vec<Vec<u64>> = logs.iter().map(|log| log.lock().unwrap().clone()).collect();
    assert_eq!(seen, [vec![1, 4, 5], vec![5], vec![1, 4, 5], vec![2, 5], vec![1], vec![4, 5], vec![1, 4, 5]]);
    assert_eq!(hub.len(), 6, "the one that wanted one event is gone");
}

#[test]
fn a_watcher_that_cannot_keep_up_is_dropped() {
    let (mut tree, mut hub, log) = (Tree::new(), Hub::default(), Mutex::default());
    let request = WatchRequest { path: "/1".into(), recursive: true, stream: true, since: 0 };
    hub.add(request, Reader(&log, 2));
    for n in 0..5 {
        hub.notify(&tree.apply(&set("/1/a", &n.to_string())).unwrap());
    }
    assert_eq!((log.lock().unwrap().len(), hub.len()), (2, 0));
}

#[test]
fn the_history_answers_from_any_index_it_keeps_and_says_when_it_does_not() {
    let mut tree = Tree::new();
    for n in 0..HISTORY_EVENTS + 5 {
        tree.apply(&set(&format!("/1/k{}", n % 10), "v")).unwrap();
    }
    let (index, history) = (tree.index(), tree.history());
    let cleared = history.scan("/1/k0", false, 5, index).unwrap_err();
    assert_eq!(
        (cleared.code.number(), cleared.cause.as_str()),
        (401, "the requested history has been cleared [6/5]")
    );
    assert_eq!(history.scan("/1/k5", false, 6, index).unwrap().unwrap().index(), 6);
    assert_eq!(history.scan("/1/k5", false, 7, index).unwrap().unwrap().index(), 16);
    assert!(history.scan("/1/other", false, 6, index).unwrap().is_none());
    assert!(history.scan("/1/k5", false, index + 1, index).unwrap().is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Op(Op),
    Expire(i64),
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(prop_oneof!["[ab]", "_h"], 1..4)
        .prop_map(|names| format!("/1/{}", names.join("/")))
}

fn step() -> impl Strategy<Value = Step> {
    let time = || proptest::option::of(0i64..20);
    let op = prop_oneof![
        (path(), any::<bool>(), "[xy]", time(), any::<bool>()).prop_map(
            |(path, dir, value, expires_ns, refresh)| {
                Op::Set { path, dir: dir && !refresh, value, expires_ns, refresh }
            }
        ),
        (path(), any::<bool>(), time(), any::<bool>()).prop_map(|(path, dir, expires_ns, in_order)| {
            Op::Create { path, dir, value: "c".into(), expires_ns, in_order }
        }),
        (path(), "[xy]?", time()).prop_map(|(path, value, expires_ns)| Op::Update {
            path,
            value,
            expires_ns,
            refresh: false
        }),
        (path(), proptest::option::of("[xy]"), time()).prop_map(|(path, prev_value, expires_ns)| {
            Op::CompareAndSwap {
                path,
                prev_value,
                prev_index: None,
                value: "s".into(),
                expires_ns,
                refresh: false,
            }
        }),
        (path(), any::<bool>(), any::<bool>()).prop_map(|(path, dir, recursive)| Op::Delete {
            path,
            dir,
            recursive
        }),
        (path(), "[xy]").prop_map(|(path, value)| {
            Op::CompareAndDelete { path, prev_value: Some(value), prev_index: None }
        }),
    ];
    prop_oneof![9 => op.prop_map(Step::Op), 1 => (0i64..20).prop_map(Step::Expire)]
}

/// What a path holds in the model: a value, or `None` for a directory; and its expiry.
type Model = BTreeMap<String, (Option<String>, Option<i64>)>;

fn below(model: &Model, path: &str) -> Vec<String> {
    model.keys().filter(|key| key.starts_with(&format!("{path}/"))).cloned().collect()
}

/// Replays an event on the model, from nothing but what a watcher would see.
fn replay(model: &mut Model, event: &Event) {
    let key = &event.node.path;
    match event.action {
        Action::Delete | Action::CompareAndDelete | Action::Expire => {
            for child in below(model, key) {
                model.remove(&child);
            }
            model.remove(key);
        }
        Action::Get => {}
        Action::Set | Action::Create | Action::Update | Action::CompareAndSwap => {
            for (end, _) in path::components(path::parent(key)).skip(1) {
                model.entry(key[..end].to_owned()).or_insert((None, None));
            }
            model.insert(key.clone(), (event.node.value.clone(), event.node.expires_ns));
        }
    }
}

fn flatten(tree: &Tree) -> Model {
    let nodes = tree.stored_nodes().into_iter();
    nodes
        .filter(|(path, _)| path.starts_with("/1/"))
        .map(|(path, n)| (path, (n.value, n.expires_ns)))
        .collect()
}

proptest! {
    /// A plain map fed with nothing but the events holds what the tree holds; the index counts the events; the
    /// marks for the image and the list of expiries are complete; and the stored form gives the tree back.
    #[test]
    fn events_alone_rebuild_the_tree(steps in proptest::collection::vec(step(), 1..80)) {
        let mut tree = Tree::new();
        let mut model = Model::new();
        let mut image: BTreeMap<String, image::StoredNode> = BTreeMap::new();
        for step in steps {
            let before = tree.index();
            let outcomes = match &step {
                Step::Op(op) => tree.apply(op).into_iter().collect(),
                Step::Expire(now) => tree.expire(*now, usize::MAX),
            };
            prop_assert_eq!(tree.index(), before + outcomes.len() as u64);
            for outcome in &outcomes {
                replay(&mut model, &outcome.event);
                for gone in &outcome.removed {
                    prop_assert!(!model.contains_key(gone));
                }
            }
            if let Step::Expire(now) = step {
                prop_assert!(model.values().all(|(_, expires)| expires.is_none_or(|at| at > now)));
            }
            prop_assert_eq!(tree.digest(), hash::tests::walked(&tree));
            prop_assert_eq!(&flatten(&tree), &model);
            prop_assert_eq!(tree.has_expiries(), model.values().any(|(_, expires)| expires.is_some()));
            for path in tree.take_dirty() {
                match tree.stored_node(&path) {
                    Some(node) => { image.insert(path, node); }
                    None => { image.remove(&path); }
                }
            }
        }
        let stored: BTreeMap<_, _> = tree.stored_nodes().into_iter().collect();
        prop_assert_eq!(&image, &stored);
        prop_assert_eq!(tree.len(), stored.len());
        let events = tree.history().iter().map(|event| (**event).clone());
        let copy = Tree::from_stored(tree.index(), stored, events).unwrap();
        prop_assert_eq!(copy.stored_nodes(), tree.stored_nodes());
        prop_assert_eq!(copy.has_expiries(), tree.has_expiries());
        prop_assert_eq!(copy.len(), tree.len());
        prop_assert_eq!(copy.digest(), tree.digest());
    }
}

/// Walks over the tree go one level of the stack deeper with each name, so depth is bounded; the deepest key that
/// is allowed must be safe to list, store and remove on a thread with a small stack.
#[test]
fn keys_have_a_bound_on_their_depth_and_the_deepest_is_harmless() {
    let deep = |names: usize| format!("/1{}", "/a".repeat(names - 1));
    let mut tree = Tree::new();
    assert_eq!(failure(&mut tree, &set(&deep(path::MAX_NAMES + 1), "v")).0, 209);
    assert_eq!(failure(&mut tree, &set(&format!("/1/{}", "x".repeat(path::MAX_BYTES)), "v")).0, 209);
    let small_stack = std::thread::Builder::new().stack_size(512 * 1024);
    let walk = move || {
        tree.apply(&set(&deep(path::MAX_NAMES), "v")).unwrap();
        assert_eq!(tree.stored_nodes().len(), path::MAX_NAMES + 1);
        let mut view = look(&tree, "/1", true);
        while let Some(child) = view.nodes.pop() {
            view = child;
        }
        assert_eq!(view.value.as_deref(), Some("v"));
        assert_eq!(tree.apply(&delete("/1/a", true, true)).unwrap().removed.len(), path::MAX_NAMES - 1);
    };
    small_stack.spawn(walk).unwrap().join().unwrap();
}
