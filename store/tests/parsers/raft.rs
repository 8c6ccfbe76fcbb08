//! Raft messages as they come from another member: whatever it says, a member does not panic, keeps what was committed,
//! and goes on.
//!
//! ```text
//! step    = 0 tick | 1 propose | 2 read | 3 campaign | 4..: from:u8 length:u16 message (protobuf)
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;
use raft::eraftpb::{Message, Snapshot};
use store::log::LogStore;
use store::log::mem::MemLog;
use store::machine::Position;
use store::node::{Core, CoreConfig, Shell};
use store::wire::raft_message;

use super::byte;

const START: Position = Position { index: 3, term: 1 };
/// So many steps show anything; more only cost time.
const STEPS: usize = 64;

#[derive(Default)]
struct Nowhere {
    /// The last state that was taken over.
    installed: Option<Position>,
}

impl Shell for Nowhere {
    fn send(&mut self, messages: Vec<Message>) {
        assert!(messages.iter().all(|message| message.to != 1), "a message to itself");
    }

    fn install(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        let meta = snapshot.get_metadata();
        self.installed = Some(Position { index: meta.index, term: meta.term });
        Ok(())
    }
}

/// Member 1 of 3 takes the steps.
pub(super) fn step(mut data: &[u8]) {
    let config = CoreConfig { id: 1, election_ticks: 10, heartbeat_ticks: 1, fixed_election_ticks: Some(10) };
    let mut core = Core::new(&config, vec![1, 2, 3], START, MemLog::new(START)).expect("a new log");
    let mut shell = Nowhere::default();
    let mut committed: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for _ in 0..STEPS {
        if data.is_empty() {
            break;
        }
        match byte(&mut data) {
            0 => core.tick(),
            1 => drop(core.propose([Bytes::from_static(b"x")])),
            2 => core.read_index(b"r".to_vec()),
            3 => core.campaign(),
            _ => {
                let from = 2 + u64::from(byte(&mut data) % 2);
                let length = usize::from(u16::from_be_bytes([byte(&mut data), byte(&mut data)]));
                let (bytes, rest) = data.split_at(length.min(data.len()));
                data = rest;
                let Ok(mut message) = raft_message::decode(bytes) else { continue };
                // The link refuses messages in another's name and to another.
                (message.from, message.to) = (from, 1);
                let _ = core.step(message);
            }
        }
        work(&mut core, &mut shell, &mut committed);
    }
}

/// Carries out what is due. What was committed stays as it is.
fn work(core: &mut Core<MemLog>, shell: &mut Nowhere, committed: &mut BTreeMap<u64, Vec<u8>>) {
    // An error stops the member with a text. It must not come from a message alone.
    while let Some(effects) = core.process(shell).expect("no message damages the log") {
        if let Some(position) = shell.installed.take() {
            committed.retain(|&index, _| index > position.index);
        }
        for entry in effects.committed {
            let before = committed.insert(entry.index, entry.data.to_vec());
            assert!(before.is_none_or(|before| before == entry.data), "entry {} has changed", entry.index);
            core.applied_to(entry.index);
        }
    }
    assert!(core.log().last_index() >= core.log().truncated().index);
}
