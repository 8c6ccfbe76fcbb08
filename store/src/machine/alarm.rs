//! Alarms: what is wrong with a member, known to all of them.
//!
//! They are replicated state, as in etcd: raised and cleared by commands, so that every member tells the same, also of a
//! member that is down. The kinds are etcd's.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of an alarm's text that are kept.
pub const MAX_TEXT_BYTES: usize = 400;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AlarmKind {
    /// The member's disk is full: it takes no writes.
    NoSpace,
    /// The member's state is not that of the leader.
    Corrupt,
}

impl fmt::Display for AlarmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AlarmKind::NoSpace => "NOSPACE",
            AlarmKind::Corrupt => "CORRUPT",
        })
    }
}

/// The alarms that are raised: at most one of a kind for each member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Alarms(BTreeMap<(u64, AlarmKind), String>);

impl Alarms {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Member, kind and text of each, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, AlarmKind, &str)> {
        self.0.iter().map(|(&(member, kind), text)| (member, kind, text.as_str()))
    }

    /// The text of a member's alarm; `None` if it is not raised.
    pub fn get(&self, member: u64, kind: AlarmKind) -> Option<&str> {
        self.0.get(&(member, kind)).map(String::as_str)
    }

    /// Whether any member has an alarm of this kind.
    pub fn any(&self, kind: AlarmKind) -> bool {
        self.0.keys().any(|(_, raised)| *raised == kind)
    }

    /// Raises an alarm; the text of one that is raised already stays. A text longer than [`MAX_TEXT_BYTES`] is cut.
    pub(super) fn raise(&mut self, member: u64, kind: AlarmKind, mut text: String) {
        let fits = (0..=MAX_TEXT_BYTES).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(fits.unwrap_or(0));
        self.0.entry((member, kind)).or_insert(text);
    }

    /// Clears an alarm.
    pub(super) fn clear(&mut self, member: u64, kind: AlarmKind) {
        self.0.remove(&(member, kind));
    }
}

/// As `/health` shows them: `ALARM CORRUPT of member 8211f1d0f64f3269: why; ALARM ...`.
impl fmt::Display for Alarms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (member, kind, text)) in self.iter().enumerate() {
            let between = if at > 0 { "; " } else { "" };
            write!(f, "{between}ALARM {kind} of member {member:x}: {text}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_raised_once_and_shown_with_its_first_reason() {
        let mut alarms = Alarms::default();
        alarms.raise(0x1f, AlarmKind::Corrupt, "first".to_owned());
        alarms.raise(0x1f, AlarmKind::Corrupt, "second".to_owned());
        alarms.raise(2, AlarmKind::NoSpace, "full".to_owned());
        assert_eq!(alarms.to_string(), "ALARM NOSPACE of member 2: full; ALARM CORRUPT of member 1f: first");
        assert!(alarms.any(AlarmKind::NoSpace) && alarms.get(2, AlarmKind::Corrupt).is_none());
        alarms.clear(2, AlarmKind::NoSpace);
        alarms.clear(2, AlarmKind::NoSpace);
        assert!(!alarms.any(AlarmKind::NoSpace) && !alarms.is_empty());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut alarms = Alarms::default();
        alarms.raise(1, AlarmKind::NoSpace, "ä€".repeat(MAX_TEXT_BYTES));
        let text = alarms.get(1, AlarmKind::NoSpace).unwrap_or_default();
        assert!((MAX_TEXT_BYTES - 3..=MAX_TEXT_BYTES).contains(&text.len()));
    }
}
