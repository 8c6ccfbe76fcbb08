//! Room on the disk: an alarm before there is none, and a reserve for when it has come to that.
//!
//! Below [`LOW`] this member takes no writes from clients but deletes, and gives leadership away. It goes on as a follower,
//! which costs room for the log. The image thread does what it can to make room (see `image`). When a write of the log finds none at all, the
//! reserve goes first; after that the raft thread waits in the write. It promises nothing then, and the others go on
//! without this member as if its disk had stalled; plain reads are answered from memory. When there is room again the write
//! is tried again, the reserve is taken back, and writes are taken: nobody has to start anything.
//!
//! What statvfs(3) says is not all: a quota, or a file system without inodes, leaves no room where it shows some. So an
//! alarm that a failed write has raised ends only when a write has succeeded and the reserve is back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::driver::Input;
use super::handle::{Shared, now};
use crate::log::disk::{Disk as _, OsDisk};
use crate::log::engine::WhenFull;
use crate::machine::{AlarmKind, Alarms};
use crate::state::room::{KEEP_FREE, free_bytes};
use crate::tree::Op;
use crate::wire::command::Command;

/// Size of the reserve, in bytes: as much as one file of the log.
pub const RESERVE: u64 = 16 << 20;
/// With less than this free, in bytes, there is an alarm.
pub const LOW: u64 = 32 << 20;
/// With this much free, in bytes, it ends: more than [`LOW`], so that it does not come and go.
pub const ENOUGH: u64 = 48 << 20;
/// With this much free, in bytes, deletes are taken all the same: they are small, and what they free is the image's.
const ENOUGH_FOR_DELETES: u64 = 8 << 20;
const _: () =
    assert!(ENOUGH_FOR_DELETES < KEEP_FREE && KEEP_FREE < LOW && LOW < ENOUGH, "in the order of need");
/// Name of the reserve, in the directory of the log.
const RESERVE_FILE: &str = "reserve";
/// How often it is looked how much room there is.
const PERIOD: Duration = Duration::from_millis(500);
/// How often a write that found no room is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// How long a member that is short of room, and is elected all the same, leads before it gives that away again.
const HAND_OVER_PERIOD: Duration = Duration::from_secs(30);

/// What the threads know of it.
#[derive(Default)]
pub struct Room {
    reasons: Mutex<Reasons>,
    takes_deletes: AtomicBool,
    /// A write of the log waits for room.
    write_waits: AtomicBool,
    stopping: Mutex<bool>,
    stopped: Condvar,
}

/// Why there is an alarm.
#[derive(Default)]
struct Reasons {
    /// There is little room.
    low: Option<Arc<str>>,
    /// There is none for a snapshot from the leader.
    held: Option<Arc<str>>,
}

impl Room {
    /// Why this member takes no writes, if it does not.
    pub fn alarm(&self) -> Option<Arc<str>> {
        let reasons = self.reasons.lock();
        reasons.low.as_ref().or(reasons.held.as_ref()).cloned()
    }

    /// Why this member does not propose `command`, if it does not. That it is there again is said all the same: it is
    /// to serve reads. Deletes are taken as long as there is room to make them durable like any other entry, for they
    /// are what a client can do about it.
    pub fn refuses(&self, command: &Command) -> Option<Arc<str>> {
        let is_taken = match command {
            Command::Publish { .. } => true,
            Command::V2(Op::Delete { .. } | Op::CompareAndDelete { .. }) => {
                self.takes_deletes.load(Ordering::Relaxed)
            }
            _ => false,
        };
        self.alarm().filter(|_| !is_taken)
    }

    /// Raises an alarm for another reason than little room, or ends that. Returns whether it is new.
    pub fn hold(&self, why: Option<String>) -> bool {
        let mut reasons = self.reasons.lock();
        let before = std::mem::replace(&mut reasons.held, why.map(Into::into));
        before.is_none() && reasons.held.is_some()
    }

    /// Every write of the log that was begun has succeeded.
    pub fn is_written(&self) {
        if self.write_waits.load(Ordering::Relaxed) {
            self.write_waits.store(false, Ordering::SeqCst);
        }
    }

    /// What the others are to be told, if `alarms` does not say it yet.
    pub fn news(&self, me: u64, alarms: &Alarms) -> Option<Command> {
        let kind = AlarmKind::NoSpace;
        let (raise, text) = match (self.alarm(), alarms.get(me, kind)) {
            (Some(text), None) => (true, text.to_string()),
            (None, Some(_)) => (false, String::new()),
            _ => return None,
        };
        Some(Command::Alarm { member: me, kind, raise, text })
    }

    /// Whether there is an alarm.
    pub fn is_low(&self) -> bool {
        self.alarm().is_some()
    }

    /// Ends every wait for room: this member stops.
    pub fn stop(&self) {
        *self.stopping.lock() = true;
        self.stopped.notify_all();
    }

    /// Waits; returns whether this member goes on.
    pub fn wait(&self, time: Duration) -> bool {
        let mut stopping = self.stopping.lock();
        if !*stopping {
            self.stopped.wait_for(&mut stopping, time);
        }
        !*stopping
    }
}

/// Whether there is an alarm. Pure.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Level {
    low: bool,
}

impl Level {
    /// With `free` bytes free; `held` says whether the reserve is not among them.
    fn after(self, free: u64, held: bool) -> Level {
        let missing = if held { 0 } else { RESERVE };
        let least = if self.low { ENOUGH + missing } else { LOW };
        Level { low: free < least }
    }
}

/// The directories, and the reserve.
pub struct Space {
    dirs: Vec<PathBuf>,
    reserve: PathBuf,
    held: bool,
    level: Level,
    /// A write has failed since there was no alarm: see [`Space::is_proved`].
    failed: bool,
    room: Arc<Room>,
}

impl Space {
    /// The reserve lies in `log_dir`. If there is little room at the start it is let go of, for starting needs some.
    pub fn open(log_dir: &Path, state_dir: &Path) -> Space {
        let reserve = log_dir.join(RESERVE_FILE);
        let held = reserve.metadata().is_ok_and(|reserve| reserve.len() >= RESERVE);
        let dirs = vec![log_dir.to_owned(), state_dir.to_owned()];
        let (level, room) = (Level::default(), Arc::default());
        let mut space = Space { dirs, reserve, held, level, failed: false, room };
        if space.least().is_some_and(|(free, _)| free < LOW) {
            space.release();
        }
        space
    }

    /// What the threads share.
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Looks how much room there is, and raises or ends the alarm.
    pub fn look(&mut self) {
        let Some((free, dir)) = self.least() else { return };
        let waits = self.room.write_waits.load(Ordering::SeqCst);
        let takes_deletes = free >= ENOUGH_FOR_DELETES && !waits;
        self.room.takes_deletes.store(takes_deletes, Ordering::Relaxed);
        match (self.level.low, self.level.after(free, self.held).low) {
            (false, true) => self.raise(free, &dir),
            (true, false) if self.is_proved() => {
                self.level.low = false;
                self.room.reasons.lock().low = None;
                tracing::info!(dir = %dir.display(), free_mib = free >> 20, "there is space again: taking writes");
            }
            _ => {}
        }
        if !self.level.low && !self.held {
            self.take_reserve();
        }
    }

    /// Whether room can be had, and is not only measured: after a write that failed one must have succeeded, and the
    /// reserve must be there.
    fn is_proved(&mut self) -> bool {
        if self.failed {
            let waits = self.room.write_waits.load(Ordering::SeqCst);
            self.failed = waits || !(self.held || self.take_reserve());
        }
        !self.failed
    }

    /// The least room in any of the directories, in bytes, and where. What cannot be measured raises no alarm: it will
    /// fail where it is used.
    fn least(&self) -> Option<(u64, PathBuf)> {
        let free = |dir: &PathBuf| Some((free_bytes(dir)?, dir.clone()));
        self.dirs.iter().filter_map(free).min()
    }

    fn raise(&mut self, free: u64, dir: &Path) {
        self.level.low = true;
        let (free, needed) = (free >> 20, ENOUGH >> 20);
        let text = format!("no space: {} has {free} MiB free, this member needs {needed} MiB", dir.display());
        tracing::error!(
            "{text}: client writes are refused until there is more; reads and deletes go on. Free some space or enlarge \
             the file system; nothing has to be restarted"
        );
        self.room.reasons.lock().low = Some(text.into());
    }

    /// A write has found no room.
    fn found_none(&mut self) {
        self.failed = true;
        self.room.write_waits.store(true, Ordering::SeqCst);
        self.room.takes_deletes.store(false, Ordering::Relaxed);
        if !self.level.low {
            let (free, dir) = self.least().unwrap_or_default();
            self.raise(free, &dir);
        }
    }

    /// Lets go of the reserve. Returns whether there was one.
    fn release(&mut self) -> bool {
        let released = std::mem::take(&mut self.held) && std::fs::remove_file(&self.reserve).is_ok();
        if released {
            tracing::warn!(file = %self.reserve.display(), "let go of the reserve");
        }
        released
    }

    /// Returns whether it is there.
    fn take_reserve(&mut self) -> bool {
        let taken = OsDisk.create(&self.reserve).and_then(|file| OsDisk.allocate(&file, 0, RESERVE));
        self.held = taken.is_ok();
        if let Err(error) = taken {
            let _ = std::fs::remove_file(&self.reserve);
            tracing::debug!(%error, "no room for the reserve");
        }
        self.held
    }
}

/// What a write of the log asks that has found no room.
pub fn when_full(space: &Arc<Mutex<Space>>) -> WhenFull {
    let space = Arc::clone(space);
    let room = Arc::clone(space.lock().room());
    Box::new(move || {
        let released = {
            let mut space = space.lock();
            space.found_none();
            space.release()
        };
        released || room.wait(RETRY)
    })
}

/// The thread that watches the room, until this member stops.
pub fn watch(space: &Mutex<Space>, shared: &Shared, inputs: &std::sync::mpsc::SyncSender<Input>) {
    let mut handed_over: Option<Instant> = None;
    while shared.room.wait(PERIOD) {
        space.lock().look();
        let due = handed_over.is_none_or(|last| last + HAND_OVER_PERIOD <= now());
        if due && shared.room.is_low() && shared.leadership.borrow().0.leads {
            let others = others_with_room(&shared.machine.read(), shared.member_id);
            if !others.is_empty() && inputs.try_send(Input::HandOver(Some(others))).is_ok() {
                handed_over = Some(now());
            }
        }
    }
}

/// The other members that have room, as far as is known: one of them is to lead.
fn others_with_room(machine: &crate::machine::Machine, me: u64) -> Vec<u64> {
    let has_room = |id: &u64| machine.alarms.get(*id, AlarmKind::NoSpace).is_none();
    machine.membership.ids().into_iter().filter(|id| *id != me && has_room(id)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::machine::{Machine, Position};
    use crate::membership::{Member, Membership};
    use crate::small_disk::on_tmpfs;
    use crate::wire::command::{Envelope, RequestId};

    #[test]
    fn an_alarm_is_told_until_the_others_know_and_refuses_what_clients_want() {
        let room = Room::default();
        let member = Member::bootstrap("n1", &["http://localhost:2380".to_owned()], "t");
        let me = member.id;
        let mut machine = Machine::bootstrap(Membership::bootstrap(vec![member]));
        assert_eq!(room.news(me, &machine.alarms), None);
        room.reasons.lock().low = Some("full".into());
        let raise = room.news(me, &machine.alarms).unwrap();
        assert!(room.refuses(&Command::Sync { now_ns: 1 }).is_some());
        let publish = Command::Publish { member: me, name: String::new(), client_urls: Vec::new() };
        assert_eq!(room.refuses(&publish), None);
        let mut apply = |command| {
            let position = Position { index: machine.applied.index + 1, term: 1 };
            let envelope = Envelope { id: RequestId { member: 0, number: 0 }, command };
            machine.apply(position, &envelope.encode()).unwrap();
            machine.alarms.clone()
        };
        let alarms = apply(raise.clone());
        assert_eq!(alarms.get(me, AlarmKind::NoSpace), Some("full"));
        assert_eq!(room.news(me, &alarms), None);
        room.reasons.lock().low = None;
        assert_eq!(room.refuses(&raise), None);
        let alarms = apply(room.news(me, &alarms).unwrap());
        assert!(alarms.is_empty());
        assert_eq!(room.news(me, &alarms), None);
    }

    #[test]
    fn leadership_is_for_those_with_room() {
        let member = |name: &str| Member::bootstrap(name, &[format!("http://{name}:2380")], "t");
        let members: Vec<Member> = ["n1", "n2", "n3"].into_iter().map(member).collect();
        let [me, full, roomy] = [0, 1, 2].map(|at: usize| members[at].id);
        let mut machine = Machine::bootstrap(Membership::bootstrap(members));
        for (member, term) in [(me, 1), (full, 2)] {
            let command =
                Command::Alarm { member, kind: AlarmKind::NoSpace, raise: true, text: "full".to_owned() };
            let entry = Envelope { id: RequestId { member: 0, number: 0 }, command }.encode();
            machine.apply(Position { index: machine.applied.index + 1, term }, &entry).unwrap();
        }
        assert_eq!(others_with_room(&machine, me), [roomy]);
    }

    #[test]
    fn an_alarm_ends_only_when_there_is_more_than_when_it_was_raised() {
        let fine = Level::default();
        assert_eq!(fine.after(LOW, true), fine);
        let low = fine.after(LOW - 1, true);
        assert!(low.low);
        assert_eq!(low.after(ENOUGH - 1, true), low);
        assert_eq!(low.after(ENOUGH, true), fine);
        // The reserve has to be taken back out of it first.
        assert_eq!(low.after(ENOUGH + RESERVE - 1, false), low);
        assert_eq!(low.after(ENOUGH + RESERVE, false), fine);
    }

    #[test]
    fn the_reserve_is_taken_and_let_go_of_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut space = Space::open(dir.path(), dir.path());
        space.look();
        let reserve = dir.path().join(RESERVE_FILE);
        assert_eq!(reserve.metadata().unwrap().len(), RESERVE);
        let space = Arc::new(Mutex::new(space));
        let room = Arc::clone(space.lock().room());
        let mut ask = when_full(&space);
        assert!(ask(), "the reserve makes room");
        assert!(!reserve.exists() && room.alarm().unwrap().contains("no space"));
        assert!(ask(), "there may be room after a while");
        room.stop();
        assert!(!ask());
        // There is room in truth: once a write has succeeded the alarm ends, and the reserve is back.
        space.lock().look();
        assert!(room.is_low() && !reserve.exists(), "the write still waits");
        room.is_written();
        space.lock().look();
        assert!(!room.is_low() && reserve.exists());
    }

    #[test]
    fn deletes_are_taken_while_there_is_room_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut space = Space::open(dir.path(), dir.path());
        space.look();
        let room = Arc::clone(space.room());
        let delete = Command::V2(Op::Delete { path: "/1/k".into(), dir: false, recursive: false });
        space.raise(LOW - 1, dir.path());
        assert!(room.refuses(&Command::Sync { now_ns: 1 }).is_some());
        assert_eq!(room.refuses(&delete), None);
        space.found_none();
        assert!(room.refuses(&delete).is_some(), "it would wait for room");
        space.look();
        assert!(room.refuses(&delete).is_some(), "a write still waits");
        room.is_written();
        space.look();
        assert_eq!(room.refuses(&delete), None, "writes succeed again");
    }

    #[test]
    fn a_snapshot_that_waits_for_room_is_a_reason_of_its_own() {
        let room = Room::default();
        assert!(room.hold(Some("no room for it".into())), "new");
        assert!(!room.hold(Some("still none".into())));
        assert_eq!(room.alarm().as_deref(), Some("still none"));
        room.reasons.lock().low = Some("full".into());
        assert_eq!(room.alarm().as_deref(), Some("full"));
        room.reasons.lock().low = None;
        assert!(!room.hold(None));
        assert!(!room.is_low());
    }

    /// A file system that shows free bytes and has no inodes, as one with a quota. It takes root.
    #[test]
    fn an_alarm_does_not_end_by_what_is_measured() {
        on_tmpfs("size=128m,nr_inodes=3", |disk| {
            let mut space = Space::open(disk, disk);
            space.look();
            assert!(space.held);
            let room = Arc::clone(space.room());
            let space = Arc::new(Mutex::new(space));
            assert!(when_full(&space)(), "the reserve makes room for a file");
            let files = [disk.join("a"), disk.join("b")];
            for file in &files {
                std::fs::write(file, "x").unwrap();
            }
            room.is_written();
            for _ in 0..3 {
                space.lock().look();
                assert!(room.is_low(), "there are bytes, and no inodes");
            }
            std::fs::remove_file(&files[0]).unwrap();
            space.lock().look();
            assert!(!room.is_low() && space.lock().held);
        });
    }
}
