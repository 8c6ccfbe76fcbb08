//! A disk that remembers every call, so that a test can lay out what a power loss after any of them leaves; and that has
//! no room or cannot sync when it is told so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, OsDisk};

/// A directory that costs no real syncs where there is one in memory.
pub(super) fn temp_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(parent).expect("a directory")
}

/// What a disk writes at once: a power loss leaves each sector old or new.
const SECTOR: u64 = 512;

/// A call that changes something.
#[derive(Debug, Clone)]
enum Op {
    Link { name: String, file: usize },
    Rename { from: String, to: String },
    Unlink { name: String },
    SyncDir,
    Write { file: usize, offset: u64, bytes: Vec<u8> },
    SetLen { file: usize, len: u64 },
    Sync { file: usize },
}

/// Real files, and what was done to them. Clones are the same disk.
#[derive(Clone, Default)]
pub(super) struct TestDisk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    ops: Vec<Op>,
    names: BTreeMap<String, usize>,
    files: usize,
    room: Option<u64>,
    sync_fails: bool,
}

pub(super) struct TestFile {
    file: File,
    number: usize,
}

impl TestDisk {
    /// The calls so far.
    pub(super) fn calls(&self) -> usize {
        self.0.lock().ops.len()
    }

    /// Length of a file, and how many of its bytes were never written to.
    pub(super) fn unwritten(&self, name: &str) -> (usize, usize) {
        let state = self.0.lock();
        let mut written = Vec::new();
        for op in &state.ops {
            match op {
                Op::Write { file, offset, bytes } if state.names.get(name) == Some(file) => {
                    let start = usize::try_from(*offset).expect("a test's file");
                    written.resize(written.len().max(start + bytes.len()), false);
                    written[start..start + bytes.len()].fill(true);
                }
                Op::SetLen { file, len } if state.names.get(name) == Some(file) => {
                    written.resize(usize::try_from(*len).expect("a test's file"), false);
                }
                _ => {}
            }
        }
        (written.len(), written.iter().filter(|&&written| !written).count())
    }

    /// From now on so many bytes can be written, `None` for as many as one likes.
    pub(super) fn set_room(&self, room: Option<u64>) {
        self.0.lock().room = room;
    }

    /// From now on no sync succeeds.
    pub(super) fn break_syncs(&self) {
        self.0.lock().sync_fails = true;
    }

    /// What a power loss after `calls` calls leaves, put into `dir`. Of what was not synced, `survives` decides sector by
    /// sector and, for names and lengths, call by call: those are journalled, so what comes after a lost one is lost too.
    pub(super) fn lay_out(&self, calls: usize, dir: &Path, survives: &mut dyn FnMut() -> bool) {
        let mut files: Vec<Remains> = Vec::new();
        let (mut names, mut unsynced) = (BTreeMap::new(), Vec::new());
        for op in &self.0.lock().ops[..calls] {
            match op {
                Op::Link { file, .. } if *file == files.len() => {
                    files.push(Remains::default());
                    unsynced.push(op.clone());
                }
                Op::Link { .. } | Op::Rename { .. } | Op::Unlink { .. } => unsynced.push(op.clone()),
                Op::SyncDir => unsynced.drain(..).for_each(|op| apply_name(&mut names, &op)),
                Op::Write { file, .. } | Op::SetLen { file, .. } => files[*file].unsynced.push(op.clone()),
                Op::Sync { file } => files[*file].settle(&mut || true),
            }
        }
        unsynced.iter().take_while(|_| survives()).for_each(|op| apply_name(&mut names, op));
        for file in &mut files {
            file.settle(survives);
        }
        for (name, file) in names {
            std::fs::write(dir.join(name), &files[file].bytes).expect("the layout is written");
        }
    }

    fn note(&self, op: Op) {
        self.0.lock().ops.push(op);
    }

    fn opened(&self, path: &Path, file: File) -> TestFile {
        let mut state = self.0.lock();
        let name = name(path);
        let number = if let Some(&number) = state.names.get(&name) {
            number
        } else {
            let number = state.files;
            state.files += 1;
            state.names.insert(name.clone(), number);
            state.ops.push(Op::Link { name, file: number });
            number
        };
        TestFile { file, number }
    }
}

/// One file: what is durable, and what may be.
#[derive(Default)]
struct Remains {
    bytes: Vec<u8>,
    unsynced: Vec<Op>,
}

impl Remains {
    fn settle(&mut self, survives: &mut dyn FnMut() -> bool) {
        let mut lengths_survive = true;
        for op in std::mem::take(&mut self.unsynced) {
            match op {
                Op::Write { offset, bytes, .. } => self.write(offset, &bytes, survives),
                Op::SetLen { len, .. } => {
                    lengths_survive &= survives();
                    if lengths_survive {
                        self.bytes.resize(usize::try_from(len).expect("a test's file"), 0);
                    }
                }
                _ => unreachable!("only content is kept here"),
            }
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8], survives: &mut dyn FnMut() -> bool) {
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let fits = usize::try_from(SECTOR - at % SECTOR).expect("small").min(rest.len());
            if survives() {
                let start = usize::try_from(at).expect("a test's file");
                if self.bytes.len() < start + fits {
                    self.bytes.resize(start + fits, 0);
                }
                self.bytes[start..start + fits].copy_from_slice(&rest[..fits]);
            }
            rest = &rest[fits..];
            at += fits as u64;
        }
    }
}

fn apply_name(names: &mut BTreeMap<String, usize>, op: &Op) {
    match op {
        Op::Link { name, file } => {
            names.insert(name.clone(), *file);
        }
        Op::Rename { from, to } => {
            let file = names.remove(from).expect("it was there when it was renamed");
            names.insert(to.clone(), file);
        }
        Op::Unlink { name } => {
            names.remove(name);
        }
        _ => unreachable!("only names are kept here"),
    }
}

fn name(path: &Path) -> String {
    path.file_name().expect("a file").to_string_lossy().into_owned()
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32)
}

impl Disk for TestDisk {
    type File = TestFile;

    fn create(&self, path: &Path) -> io::Result<TestFile> {
        Ok(self.opened(path, OsDisk.create(path)?))
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<TestFile> {
        Ok(self.opened(path, OsDisk.open(path, writable)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)?;
        let mut state = self.0.lock();
        if let Some(file) = state.names.remove(&name(from)) {
            state.names.insert(name(to), file);
        }
        state.ops.push(Op::Rename { from: name(from), to: name(to) });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)?;
        self.0.lock().names.remove(&name(path));
        self.note(Op::Unlink { name: name(path) });
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.note(Op::SyncDir);
        Ok(())
    }

    fn read_at(&self, file: &TestFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        OsDisk.read_at(&file.file, buffer, offset)
    }

    fn write_at(&self, file: &TestFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        let fits = {
            let mut state = self.0.lock();
            let fits = state.room.map_or(bytes.len() as u64, |room| room.min(bytes.len() as u64));
            state.room = state.room.map(|room| room - fits);
            usize::try_from(fits).expect("no more than was asked")
        };
        OsDisk.write_at(&file.file, &bytes[..fits], offset)?;
        self.note(Op::Write { file: file.number, offset, bytes: bytes[..fits].to_vec() });
        if fits == bytes.len() { Ok(()) } else { Err(full()) }
    }

    fn set_len(&self, file: &TestFile, len: u64) -> io::Result<()> {
        OsDisk.set_len(&file.file, len)?;
        self.note(Op::SetLen { file: file.number, len });
        Ok(())
    }

    fn allocate(&self, file: &TestFile, offset: u64, len: u64) -> io::Result<()> {
        if self.0.lock().room.is_some_and(|room| room < len) {
            return Err(full());
        }
        self.set_len(file, offset + len)
    }

    fn sync(&self, file: &TestFile) -> io::Result<()> {
        if self.0.lock().sync_fails {
            return Err(io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32));
        }
        self.note(Op::Sync { file: file.number });
        Ok(())
    }

    fn len(&self, file: &TestFile) -> io::Result<u64> {
        OsDisk.len(&file.file)
    }
}
