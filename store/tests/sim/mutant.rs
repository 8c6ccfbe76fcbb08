//! Planted bugs, each in this simulator's shell or doubles, to show that the checkers would notice.

use store::machine::Machine;
use store::tree::Tree;

use crate::checks::Broken;

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The log says that it is synced before it is.
    AckBeforeSync,
    /// Entries are applied as soon as they are in the log.
    ApplyBeforeCommit,
    /// A member that believes to lead answers quorum reads without asking.
    StaleRead,
    /// Expiry times are not read back at a start.
    TtlLostOnRestart,
}

impl Mutant {
    pub(crate) const ALL: [Mutant; 4] =
        [Mutant::AckBeforeSync, Mutant::ApplyBeforeCommit, Mutant::StaleRead, Mutant::TtlLostOnRestart];
}

/// What [`Mutant::TtlLostOnRestart`] starts with.
pub(crate) fn without_expiries(mut machine: Machine) -> Result<Machine, Broken> {
    let mut nodes = machine.tree.stored_nodes();
    for (_, node) in &mut nodes {
        node.expires_ns = None;
    }
    let events = machine.tree.history().iter().map(|event| (**event).clone());
    let tree = Tree::from_stored(machine.tree.index(), nodes, events);
    machine.tree = tree.map_err(|error| error.to_string())?;
    Ok(machine)
}
