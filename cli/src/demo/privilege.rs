//! Getting the rights the demo needs: as root directly, else through a user namespace where the kernel allows.
//!
//! Afterwards every child of this process starts as process 1 of a process namespace of its own. When that
//! child ends, for whatever reason, the kernel ends all its descendants; their network namespaces go with them.

use std::fs;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// How the rights were come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// The caller has them.
    Root,
    /// Root of a new user namespace; nothing outside it.
    UserNamespace,
}

/// Makes the next child the first of a new process namespace, entering a user namespace first if need be.
///
/// To be called while the process has one thread; it can have no second one afterwards.
///
/// # Errors
/// When neither way is allowed; the message says which kernel setting stands in the way.
pub(crate) fn enter() -> Result<Privilege> {
    match unshare(CloneFlags::CLONE_NEWPID) {
        Ok(()) => return Ok(Privilege::Root),
        Err(Errno::EPERM) => {}
        Err(err) => return Err(err).context("cannot make a process namespace"),
    }
    let (uid, gid) = (geteuid(), getegid());
    if let Err(err) = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID) {
        return Err(anyhow!(refusal(err, geteuid().is_root(), &read_setting)));
    }
    // A plain user may map the own group only after giving up setgroups(2): user_namespaces(7).
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    Ok(Privilege::UserNamespace)
}

fn write(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("{path}: the user namespace cannot be set up"))
}

fn read_setting(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Why a user namespace was refused and what to do about it.
fn refusal(err: Errno, is_root: bool, setting: &dyn Fn(&str) -> Option<String>) -> String {
    let is = |path: &str, value: &str| setting(path).as_deref() == Some(value);
    let cause = if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sysctl kernel.unprivileged_userns_clone is 0: set it to 1, or run the demo as root"
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "sysctl user.max_user_namespaces is 0: raise it, or run the demo as root"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sysctl kernel.apparmor_restrict_unprivileged_userns is 1: set it to 0, or run the demo as root"
    } else if is_root {
        "this root lacks CAP_SYS_ADMIN: in a container, start it with --privileged"
    } else {
        "run the demo as root"
    };
    format!("the kernel refuses the namespaces the demo lives in ({}): {cause}", err.desc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_setting_in_the_way() {
        let with = |on: &'static str, value: &'static str| {
            move |path: &str| path.ends_with(on).then(|| value.to_owned())
        };
        let refused = |setting: &dyn Fn(&str) -> Option<String>, root| refusal(Errno::EPERM, root, setting);
        assert!(refused(&with("max_user_namespaces", "0"), false).contains("user.max_user_namespaces is 0"));
        assert!(
            refused(&with("unprivileged_userns_clone", "0"), false).contains("unprivileged_userns_clone")
        );
        assert!(refused(&with("restrict_unprivileged_userns", "1"), false).contains("apparmor"));
        assert!(refused(&with("max_user_namespaces", "100"), false).ends_with("run the demo as root"));
        assert!(refused(&|_| None, true).contains("CAP_SYS_ADMIN"));
    }
}
