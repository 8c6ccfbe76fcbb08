//! The image on disk: a sled 0.34 database that is written once, and a plain file of what has changed since.
//!
//! sled cannot be trusted with changes: its recovery from a power loss in the middle of them loses what it had synced
//! before (docs/adr/0002). So a database is filled, made durable as a whole, closed, and named the current one by a rename; it
//! is not changed after that, and only a start opens it again. Changes are records at the end of a file
//! ([`super::changes`]). When they have grown ([`StateStore::has_grown`]), a new database takes the place of both.
//!
//! Keys of the database: `n` + path for a node, `e` + index (8 bytes, network order) for an event, `m` for the rest. Values
//! are postcard. The state's digest, kept with the image and with every change, is compared when it is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sled::{Batch, Db, Mode};

use super::changes::Changes;
use super::faults::Faults;
use super::files::{self, Files, NotSet};
use super::room::{self, KEEP_FREE};
use super::seal::{seal, unseal};
use super::tail::Tail;
use super::{Delta, Identity, KEY_META, StateError, StateStore, Usage, VERSION, old};
use crate::machine::{Alarms, Machine, Position};
use crate::membership::Membership;
use crate::snapshot::Snapshot;
use crate::tree::image::StoredNode;
use crate::tree::{Digest, Event, Tree};

/// sled's page cache. The state lives in memory as a tree, so this only serves the writer.
const CACHE_BYTES: u64 = 2 << 20;
/// Operations that go into one batch of a database that is filled: sled keeps about 5 KiB for each until it is done.
const BATCH_OPERATIONS: usize = 512;
/// Bytes of keys and values after which a batch is full all the same.
const BATCH_BYTES: usize = 1 << 20;
/// Operations after which one round of collecting is enough: a round frees up to 512 objects (crossbeam-epoch: 8 bags of
/// 64), and an operation leaves about 2.
const OPERATIONS_PER_ROUND: usize = 64;
/// How long a database that was just closed may stay locked: so many times [`LOCK_PAUSE`].
const LOCK_TRIES: usize = 250;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Databases that could not be filled although there was room for them. Each keeps its memory and a file descriptor until
/// the process ends.
const MAX_FORGOTTEN: usize = 8;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Meta {
    identity: Identity,
    applied: Position,
    index: u64,
    membership: Membership,
    alarms: Alarms,
    digest: Digest,
}

/// The image on disk.
pub struct SledState {
    dir: PathBuf,
    /// The one that `current` names; `None` before the first.
    image: Option<Image>,
    /// Databases of attempts that failed: see [`MAX_FORGOTTEN`].
    forgotten: usize,
    /// How much room there is.
    free_bytes: fn(&Path) -> Option<u64>,
}

/// A database, which is closed, and what has changed since.
struct Image {
    number: u64,
    dir: PathBuf,
    changes: Changes,
    /// Bytes of the database.
    size: u64,
    /// A sync has failed, or nobody knows which image is the current one: a new one has to be made.
    failed: bool,
}

/// An open sled database.
struct Database {
    db: Db,
    files: Files,
    faults: Faults,
}

impl SledState {
    /// Opens the image in `dir`, made if it is not there. One of an earlier version is written anew. Otherwise nothing is
    /// changed or removed before [`SledState::accept`].
    ///
    /// # Errors
    /// [`StateError`] if it cannot be read, or something of it is missing.
    pub fn open(dir: &Path) -> Result<SledState, StateError> {
        std::fs::create_dir_all(dir).map_err(files::fail(dir))?;
        let mut state =
            SledState { dir: dir.to_owned(), image: None, forgotten: 0, free_bytes: room::free_bytes };
        match files::current(dir)? {
            Some(number) => state.image = Some(Image::open(dir, number)?),
            None if old::is_there(dir) => state.renew()?,
            None => {}
        }
        Ok(state)
    }

    /// What was loaded and the raft log go together: what is not part of the image goes, and what is not whole will be cut
    /// off with the next change.
    pub fn accept(&self) {
        let Some(image) = &self.image else { return };
        files::remove_others(&self.dir, image.number);
        match image.changes.tail() {
            Some((path, tail @ Tail { next: Some(_), .. })) => tracing::error!(
                path = %path.display(),
                "{tail}: the disk or another program has changed it, unless the power was lost before it was synced; check \
                 the disk. Nothing is lost, the raft log has what came after"
            ),
            Some((path, tail)) => tracing::warn!(
                path = %path.display(),
                "{tail}, as a crash in the middle of a write leaves it; the raft log has it"
            ),
            None => {}
        }
    }

    /// No image is there, although there should be.
    pub fn missing(&self, why: &str) -> StateError {
        files::unnamed(&self.dir, why)
    }

    /// The image is not what it should be by the raft log: names what of it is damaged.
    pub fn lacking(&self, what: &str) -> StateError {
        let tail = self.image.as_ref().and_then(|image| image.changes.tail());
        let (path, flaw) = match tail {
            Some((path, tail)) => (path, format!("{tail}. ")),
            None => (&*self.dir, String::new()),
        };
        Faults::of(path).damaged(format!("{flaw}{what}. Nothing was changed. {}", files::ADVICE))
    }

    /// Writes an image of an earlier version as one of this.
    fn renew(&mut self) -> Result<(), StateError> {
        let found = with_database(&self.dir, |database| old::load(&database.db, &database.faults))?;
        let Some((identity, machine)) = found else { return Ok(()) };
        tracing::info!(dir = %self.dir.display(), "writing an image of an earlier version anew");
        self.replace(identity, &machine.freeze())
    }
}

impl StateStore for SledState {
    fn load(&self) -> Result<Option<(Identity, Machine)>, StateError> {
        self.image.as_ref().map(Image::load).transpose()
    }

    /// Fills a new database and makes it the current one: possible also after a write that failed. Nothing is begun
    /// without room for all of it: what sled has done by then would be lost, and some of its memory.
    fn replace(&mut self, identity: Identity, state: &Snapshot) -> Result<(), StateError> {
        if self.forgotten >= MAX_FORGOTTEN {
            let what =
                "too many new images could not be written; see to the disk and start this member again";
            return Err(Faults::of(&self.dir).damaged(what));
        }
        files::free_room(&self.dir);
        let needed = room::image_bytes_of(state);
        if let Some(free) = (self.free_bytes)(&self.dir) {
            room::check(&self.dir, free, needed)?;
        }
        files::try_room(&self.dir, needed)?;
        let number = files::free_number(&self.dir)?;
        let made = Image::make(&self.dir, number, identity, state);
        let image = made.inspect_err(|_| {
            self.forgotten += 1;
            files::remove_image(&self.dir, number);
        })?;
        match files::set_current(&self.dir, number) {
            Err(NotSet::Untried(error)) => {
                files::remove_image(&self.dir, number);
                return Err(error);
            }
            Err(NotSet::Unknown(error)) => {
                // Nothing more may go into the old one.
                if let Some(old) = &mut self.image {
                    old.failed = true;
                }
                return Err(error);
            }
            Ok(()) => {}
        }
        self.image = Some(image);
        files::remove_others(&self.dir, number);
        Ok(())
    }

    fn write(&mut self, delta: &Delta) -> Result<(), StateError> {
        let missing = || Faults::of(&self.dir).damaged("a change came before the first image");
        let image = self.image.as_mut().ok_or_else(missing)?;
        if image.failed || !image.changes.is_whole() {
            let faults = Faults::of(&image.dir);
            return Err(faults.damaged("an earlier write of it failed; it has to be written anew"));
        }
        let free = (self.free_bytes)(&self.dir).unwrap_or(u64::MAX);
        image.changes.push(delta, free.saturating_sub(KEEP_FREE))
    }

    fn takes_changes(&self) -> bool {
        self.image.as_ref().is_some_and(|image| !image.failed && image.changes.is_whole())
    }

    fn usage(&self) -> Usage {
        let (image, changes) =
            self.image.as_ref().map_or((0, 0), |image| (image.size, image.changes.length()));
        Usage { image, changes, free: (self.free_bytes)(&self.dir).unwrap_or(u64::MAX) }
    }

    fn sync(&mut self) -> Result<(), StateError> {
        let Some(image) = &mut self.image else { return Ok(()) };
        // After a failed sync the kernel may have forgotten what it could not write.
        let synced = image.changes.sync();
        image.failed |= synced.is_err();
        synced
    }
}

impl Image {
    fn open(dir: &Path, number: u64) -> Result<Image, StateError> {
        let changes_file = files::changes_file(dir, number);
        let dir = files::image_dir(dir, number);
        if !dir.is_dir() {
            return Err(files::missing(&dir, "it is the image that is named by the file current"));
        }
        let changes = Changes::open(&changes_file)?;
        let size = files::size(&dir)?;
        Ok(Image { number, dir, changes, size, failed: false })
    }

    /// A new image, all of it durable, and not the current one yet.
    fn make(dir: &Path, number: u64, identity: Identity, state: &Snapshot) -> Result<Image, StateError> {
        with_database(&files::image_dir(dir, number), |database| database.fill(identity, state))?;
        Changes::create(&files::changes_file(dir, number))?;
        Image::open(dir, number)
    }

    /// What the database holds, with all of the changes.
    fn load(&self) -> Result<(Identity, Machine), StateError> {
        let faults = Faults::of(&self.dir);
        let records = self.changes.read()?;
        let (meta, mut nodes, mut events) = with_database(&self.dir, Database::content)?;
        let mut meta = meta;
        for record in records {
            for (path, node) in record.nodes {
                match node {
                    Some(node) => nodes.insert(path, node),
                    None => nodes.remove(&path),
                };
            }
            events.extend(record.events.into_iter().map(|event| (event.index(), event)));
            events = events.split_off(&record.first_event);
            meta = Meta {
                identity: meta.identity,
                applied: record.applied,
                index: record.index,
                membership: record.membership,
                alarms: record.alarms,
                digest: record.digest,
            };
        }
        let tree = Tree::from_stored(meta.index, nodes, events.into_values());
        let tree = tree.map_err(|error| faults.damaged(error.to_string()))?;
        let machine = Machine::new(tree, meta.membership, meta.alarms, meta.applied);
        let (found, wanted) = (machine.digest(), meta.digest);
        if found != wanted {
            return Err(StateError::Digest { dir: faults.dir().display().to_string(), found, wanted });
        }
        Ok((meta.identity, machine))
    }
}

/// Opens the database in `dir`, does `work` with it, and closes it. After a failure it is never closed: closing could wait
/// for ever, with a lock that all databases of the process share.
fn with_database<T>(
    dir: &Path,
    work: impl FnOnce(&Database) -> Result<T, StateError>,
) -> Result<T, StateError> {
    let mut kept = None;
    let done = Faults::of(dir).guard(|| {
        let database = Database::open(dir)?;
        kept = Some(database.db.clone());
        work(&database)
    });
    if done.is_err() {
        std::mem::forget(kept);
    }
    done
}

/// sled's own threads may hold a closed database, and its lock, for a moment longer.
fn open_unlocked(config: &sled::Config) -> sled::Result<Db> {
    for _ in 0..LOCK_TRIES {
        match config.open() {
            Err(sled::Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                std::thread::sleep(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
    config.open()
}

/// What an image holds: the rest, nodes by path, events by index.
type Content = (Meta, BTreeMap<String, StoredNode>, BTreeMap<u64, Event>);

impl Database {
    fn open(dir: &Path) -> Result<Database, StateError> {
        let (files, faults) = (Files::prepare(dir)?, Faults::of(dir));
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .mode(Mode::LowSpace)
            .flush_every_ms(None);
        let db = open_unlocked(&config).map_err(|source| faults.engine(source))?;
        files.sync()?;
        Ok(Database { db, files, faults })
    }

    /// Writes everything into an empty database, and makes it durable.
    fn fill(&self, identity: Identity, state: &Snapshot) -> Result<(), StateError> {
        let meta = Meta {
            identity,
            applied: state.applied(),
            index: state.tree().index(),
            membership: state.membership().clone(),
            alarms: state.alarms().clone(),
            digest: state.digest(),
        };
        self.put_all(state, &meta).map_err(|source| self.faults.engine(source))?;
        self.files.sync()
    }

    fn put_all(&self, state: &Snapshot, meta: &Meta) -> sled::Result<()> {
        let mut filler = Filler::new(&self.db);
        state.tree().for_each(&mut |path, node| filler.put(node_key(path), encode(&node)))?;
        for event in state.tree().events() {
            filler.put(event_key(event.index()), seal(&encode(&**event)))?;
        }
        filler.put(KEY_META.to_vec(), meta.encode())?;
        filler.write()?;
        self.db.flush().map(drop)
    }

    fn meta(&self) -> Result<Meta, StateError> {
        let stored = self.db.get(KEY_META).map_err(|source| self.faults.engine(source))?;
        match stored.as_deref().and_then(<[u8]>::split_first) {
            Some((&VERSION, sealed)) => unseal(sealed)
                .and_then(|body| postcard::from_bytes(body).ok())
                .ok_or_else(|| self.faults.damaged("its description is unreadable")),
            Some((&other, _)) => Err(self.faults.version(other)),
            None => Err(self.faults.damaged("its description is gone")),
        }
    }

    fn content(&self) -> Result<Content, StateError> {
        let engine = |source| self.faults.engine(source);
        let mut nodes = BTreeMap::new();
        for item in self.db.scan_prefix(b"n") {
            let (key, value) = item.map_err(engine)?;
            let path = String::from_utf8_lossy(&key[1..]).into_owned();
            let node = postcard::from_bytes(&value);
            let node = node.map_err(|_| self.faults.damaged(format!("{path} is unreadable")))?;
            nodes.insert(path, node);
        }
        let mut events = BTreeMap::new();
        for item in self.db.scan_prefix(b"e") {
            let (_, value) = item.map_err(engine)?;
            let event = unseal(&value).and_then(|event| postcard::from_bytes(event).ok());
            let event: Event = event.ok_or_else(|| self.faults.damaged("an event is unreadable"))?;
            events.insert(event.index(), event);
        }
        Ok((self.meta()?, nodes, events))
    }
}

/// Fills a database in batches.
struct Filler<'a> {
    db: &'a Db,
    batch: Batch,
    operations: usize,
    bytes: usize,
}

impl Filler<'_> {
    fn new(db: &Db) -> Filler<'_> {
        Filler { db, batch: Batch::default(), operations: 0, bytes: 0 }
    }

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> sled::Result<()> {
        self.operations += 1;
        self.bytes += key.len() + value.len();
        self.batch.insert(key, value);
        if self.operations < BATCH_OPERATIONS && self.bytes < BATCH_BYTES { Ok(()) } else { self.write() }
    }

    /// sled leaves old versions of its pages to crossbeam-epoch, which frees a little at every 128th access. A batch is one
    /// access, however large: without the rounds here they would add up.
    fn write(&mut self) -> sled::Result<()> {
        let Filler { batch, operations, .. } = std::mem::replace(self, Filler::new(self.db));
        self.db.apply_batch(batch)?;
        for _ in 0..=operations / OPERATIONS_PER_ROUND {
            sled::pin().flush();
        }
        Ok(())
    }
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        [&[VERSION], seal(&encode(self)).as_slice()].concat()
    }
}

fn node_key(path: &str) -> Vec<u8> {
    [b"n", path.as_bytes()].concat()
}

fn event_key(index: u64) -> Vec<u8> {
    [b"e", &index.to_be_bytes()[..]].concat()
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("stored values have no length that postcard cannot write")
}

#[cfg(test)]
#[path = "sled_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "power_tests.rs"]
mod power_tests;
