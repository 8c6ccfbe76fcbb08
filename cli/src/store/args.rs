//! The arguments of the commands on keys and members, as etcdctl has them.

use clap::{Args, Subcommand};

use crate::args::StoreArgs;

/// The commands on keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Prints the value of a key
    #[command(after_help = "\
Examples:
  cli get /coreos.com/network/config
  cli get -o extended /coreos.com/network/config
  cli get --quorum --endpoints https://192.168.31.63:2379 --ca-file ca.pem /a

Exit codes: 0 printed; 1 bad arguments or a directory; 2 cannot connect; 4 the store's error (no such key, ...)")]
    Get(GetArgs),
    /// Sets a key, or creates it
    #[command(after_help = "\
Examples:
  cli set /coreos.com/network/config '{\"Network\":\"172.17.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}'
  cli set /a 2 --swap-with-value 1
  cli set /a -- -1
  cli set /motd < motd.txt

Exit codes: 0 set; 1 bad arguments; 2 cannot connect; 4 the store's error (compare failed, ...)")]
    Set(SetArgs),
    /// Creates a key that must not exist yet
    #[command(after_help = "\
Examples:
  cli mk /lock me --ttl 30
  cli mk --in-order /queue job")]
    Mk(MkArgs),
    /// Changes a key that must exist
    #[command(after_help = "Example:\n  cli update /a 3")]
    Update(ValueArgs),
    /// Lists a directory
    #[command(after_help = "\
Examples:
  cli ls --sort -r -p /
  cli ls /coreos.com/network/subnets")]
    Ls(LsArgs),
    /// Creates a directory that must not exist yet
    #[command(after_help = "Example:\n  cli mkdir /jobs --ttl 3600")]
    Mkdir(DirArgs),
    /// Creates a directory, or replaces a file by one
    #[command(after_help = "Example:\n  cli setdir /jobs")]
    Setdir(DirArgs),
    /// Changes the TTL of a directory
    #[command(after_help = "Example:\n  cli updatedir /jobs --ttl 7200")]
    Updatedir(DirArgs),
    /// Removes a key, or a directory with --dir or --recursive
    #[command(after_help = "\
Examples:
  cli rm /a
  cli rm /a --with-value 1
  cli rm -r /coreos.com/network/subnets")]
    Rm(RmArgs),
    /// Removes an empty directory or a key
    #[command(after_help = "Example:\n  cli rmdir /jobs")]
    Rmdir(RmdirArgs),
    /// Waits for a change of a key and prints it
    #[command(after_help = "\
Examples:
  cli watch /a
  cli watch -r -f /coreos.com/network/subnets
  cli watch /a --after-index 41

Without --forever it ends after the first change. Interrupting it is a success (exit code 0).")]
    Watch(WatchArgs),
}

impl KeyCommand {
    /// The store options given with the command.
    pub(crate) fn store(&self) -> &StoreArgs {
        match self {
            Self::Get(args) => &args.store,
            Self::Set(args) => &args.value.store,
            Self::Mk(args) => &args.value.store,
            Self::Update(args) => &args.store,
            Self::Ls(args) => &args.store,
            Self::Mkdir(args) | Self::Setdir(args) | Self::Updatedir(args) => &args.store,
            Self::Rm(args) => &args.store,
            Self::Rmdir(args) => &args.store,
            Self::Watch(args) => &args.store,
        }
    }
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The key
    pub(super) key: Option<String>,
    /// Sort the result
    #[arg(long)]
    pub(super) sort: bool,
    /// Read through the leader rather than from the answering member
    #[arg(long, short)]
    pub(super) quorum: bool,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// A key with a value.
#[derive(Debug, Args)]
pub(crate) struct ValueArgs {
    /// The key
    pub(super) key: Option<String>,
    /// The value; read from stdin when missing. A value that begins with `-` goes behind `--`
    pub(super) value: Option<String>,
    /// Seconds to live; 0 means for ever
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(super) ttl: i64,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// Arguments of `set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    pub(super) value: ValueArgs,
    /// Only if the present value is this one
    #[arg(long, value_name = "VALUE", default_value = "", hide_default_value = true)]
    pub(super) swap_with_value: String,
    /// Only if the present modified index is this one
    #[arg(long, value_name = "INDEX", default_value_t = 0, hide_default_value = true)]
    pub(super) swap_with_index: u64,
}

/// Arguments of `mk`.
#[derive(Debug, Args)]
pub(crate) struct MkArgs {
    #[command(flatten)]
    pub(super) value: ValueArgs,
    /// Create a key below this one whose name sorts after all earlier ones
    #[arg(long)]
    pub(super) in_order: bool,
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "one for each of the command's switches")]
pub(crate) struct LsArgs {
    /// The directory
    #[arg(default_value = "/")]
    pub(super) key: String,
    /// Sort the result
    #[arg(long)]
    pub(super) sort: bool,
    /// Everything below, at any depth
    #[arg(long, short)]
    pub(super) recursive: bool,
    /// Put a slash behind directories
    #[arg(short = 'p')]
    pub(super) slash: bool,
    /// Read through the leader rather than from the answering member
    #[arg(long, short)]
    pub(super) quorum: bool,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// Arguments of `mkdir`, `setdir` and `updatedir`.
#[derive(Debug, Args)]
pub(crate) struct DirArgs {
    /// The directory
    pub(super) key: Option<String>,
    /// Seconds to live; 0 means for ever
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(super) ttl: i64,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// The key
    pub(super) key: Option<String>,
    /// Also an empty directory
    #[arg(long)]
    pub(super) dir: bool,
    /// A directory with everything below it
    #[arg(long, short)]
    pub(super) recursive: bool,
    /// Only if the present value is this one
    #[arg(long, value_name = "VALUE", default_value = "", hide_default_value = true)]
    pub(super) with_value: String,
    /// Only if the present modified index is this one
    #[arg(long, value_name = "INDEX", default_value_t = 0, hide_default_value = true)]
    pub(super) with_index: u64,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// Arguments of `rmdir`.
#[derive(Debug, Args)]
pub(crate) struct RmdirArgs {
    /// The directory
    pub(super) key: Option<String>,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The key
    pub(super) key: Option<String>,
    /// Go on after the first change, until interrupted
    #[arg(long, short)]
    pub(super) forever: bool,
    /// Everything below the key as well
    #[arg(long, short)]
    pub(super) recursive: bool,
    /// Begin with the first change after this index; 0 means with the next change
    #[arg(long, value_name = "INDEX", default_value_t = 0, hide_default_value = true)]
    pub(super) after_index: u64,
    #[command(flatten)]
    pub(super) store: StoreArgs,
}

/// The members of the store
#[derive(Debug, Args)]
pub(crate) struct MemberArgs {
    #[command(subcommand)]
    pub(super) command: MemberCommand,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// The commands on members.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum MemberCommand {
    /// Lists the members and marks the leader
    #[command(after_help = "\
Example:
  cli member list --endpoints https://192.168.31.63:2379 --ca-file ca.pem

Exit codes: 0 listed; 1 no leader; 2 cannot connect")]
    List,
}
