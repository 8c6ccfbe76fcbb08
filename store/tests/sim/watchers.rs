//! Clients that watch, on one member after another, and the check that they hear of everything once, in order.
//!
//! A watcher asks for what comes after the last event that it has, first from the history and then from the hub, as
//! `server::handle` does. Where the history no longer reaches back it is told so (error 401) and begins anew: only there
//! may events be missing.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use store::tree::{Event, WatchRequest};

use crate::checks::Broken;
use crate::member::Body;
use crate::report::Report;

/// Events that may wait for one watcher: few, so that slow ones are cut off.
const BACKLOG: usize = 12;

/// Where the hub puts events.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sink(Rc<RefCell<Line>>);

#[derive(Debug, Default)]
struct Line {
    events: VecDeque<Arc<Event>>,
    cut: bool,
}

impl store::tree::Sink for Sink {
    fn deliver(&self, event: &Arc<Event>) -> bool {
        let mut line = self.0.borrow_mut();
        if line.events.len() >= BACKLOG {
            line.cut = true;
            return false;
        }
        line.events.push_back(Arc::clone(event));
        true
    }
}

/// What a watcher has heard without a gap.
#[derive(Debug, Default)]
struct Stretch {
    /// The first index that it asked for.
    from: u64,
    events: Vec<Arc<Event>>,
}

/// One of them.
pub(crate) struct Watcher {
    path: String,
    recursive: bool,
    line: Option<(u64, u64, Sink)>,
    since: u64,
    stretches: Vec<Stretch>,
}

impl Watcher {
    pub(crate) fn new(path: &str, recursive: bool) -> Watcher {
        Watcher {
            path: path.to_owned(),
            recursive,
            line: None,
            since: 1,
            stretches: vec![Stretch::default()],
        }
    }

    /// The member, and which of its lives, that it watches on.
    pub(crate) fn on(&self) -> Option<(u64, u64)> {
        self.line.as_ref().map(|(member, life, _)| (*member, *life))
    }

    /// Its watch has ended.
    pub(crate) fn leave(&mut self) {
        self.line = None;
    }

    /// Begins on a member, after what it has heard.
    pub(crate) fn watch(&mut self, (member, life): (u64, u64), body: &mut Body, report: &mut Report) {
        let (tree, path) = (&body.machine.tree, self.path.clone());
        loop {
            match tree.history().scan(&path, self.recursive, self.since, tree.index()) {
                Ok(Some(event)) => self.hear(event),
                Ok(None) => break,
                Err(_) => {
                    report.hit("watch: history cleared (401)");
                    self.since = tree.index() + 1;
                    self.stretches.push(Stretch { from: self.since, events: Vec::new() });
                }
            }
        }
        let request = WatchRequest { path, recursive: self.recursive, stream: true, since: self.since };
        let sink = Sink::default();
        body.hub.add(request, sink.clone());
        self.line = Some((member, life, sink));
        report.hit("watch: begun");
    }

    /// Takes what waits. A watch that was cut off ends.
    pub(crate) fn drain(&mut self, report: &mut Report) {
        let Some((_, _, sink)) = &self.line else { return };
        let sink = sink.clone();
        let mut line = sink.0.borrow_mut();
        while let Some(event) = line.events.pop_front() {
            self.hear(event);
        }
        if line.cut {
            report.hit("watch: cut off, too slow");
            self.line = None;
        }
    }

    fn hear(&mut self, event: Arc<Event>) {
        self.since = self.since.max(event.index() + 1);
        if let Some(stretch) = self.stretches.last_mut() {
            stretch.events.push(event);
        }
    }

    /// Every event that concerns it, once, in order, and up to the end.
    pub(crate) fn check(&self, all: &BTreeMap<u64, Arc<Event>>, report: &mut Report) -> Result<(), Broken> {
        for (at, stretch) in self.stretches.iter().enumerate() {
            let is_last = at + 1 == self.stretches.len();
            let to = match stretch.events.last() {
                _ if is_last => u64::MAX,
                Some(event) => event.index(),
                None => continue,
            };
            let due =
                all.range(stretch.from..=to).map(|(_, event)| event).filter(|event| self.concerns(event));
            let due: Vec<u64> = due.map(|event| event.index()).collect();
            let heard: Vec<u64> = stretch.events.iter().map(|event| event.index()).collect();
            report.add("watch: events heard", heard.len() as u64);
            if due != heard {
                let odd = due.iter().zip(&heard).find(|(due, heard)| due != heard);
                return Err(format!(
                    "a watcher of {} from {} heard {} events where {} are due; the first that differs: {odd:?}",
                    self.path,
                    stretch.from,
                    heard.len(),
                    due.len()
                ));
            }
        }
        Ok(())
    }

    fn concerns(&self, event: &Event) -> bool {
        let key = event.node.path.as_str();
        let below = key.strip_prefix(self.path.as_str()).is_some_and(|rest| rest.starts_with('/'));
        !event.refresh && (key == self.path || (self.recursive && below))
    }
}
