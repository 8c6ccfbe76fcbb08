//! `cli`: Weft's operator tool. Dispatch only; each command group has its module.

mod args;
mod complete;
mod connect;
mod datapath;
mod demo;
mod docker_opts;
mod exit;
mod health;
mod output;
mod ping_mesh;
mod pki;
mod store;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser as _;

use args::{Cli, Command};
use exit::Exit;

fn main() -> ExitCode {
    let words = args::called_by_another_name(std::env::args_os().collect());
    let words = args::hoist_store_options(pki::normalise_args(words));
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &words),
    };
    dispatch(cli.command).unwrap_or_else(|error| {
        if output::is_closed_pipe(&error) {
            return Exit::Success.into();
        }
        eprintln!("Error:  {error:#}");
        Exit::Failure.into()
    })
}

/// Prints help, or what is wrong with the command line. etcdctl's own commands end with 1 there, the rest with 2.
fn usage(error: &clap::Error, words: &[OsString]) -> ExitCode {
    let _ = error.print();
    match args::command_name(words) {
        _ if !error.use_stderr() => Exit::Success.into(),
        Some(name) if args::MIRRORED.contains(&name) => Exit::Failure.into(),
        _ => Exit::Usage.into(),
    }
}

/// Runs a command. No thread and no runtime exists before: the demo needs that for its user namespace.
fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout();
    let mut err = io::stderr();
    let exit = match command {
        Command::Health(args) => with_runtime(args.store.debug, health::run(&args, &mut out, &mut err))??,
        Command::PingMesh(args) => {
            with_runtime(args.store.debug, ping_mesh::run(&args, &mut out, &mut err))??
        }
        Command::Key(command) => {
            let mut stdin = io::stdin();
            let debug = command.store().debug;
            ended(with_runtime(debug, store::run(command, &mut stdin, &mut out))?)?
        }
        Command::Member(args) => ended(with_runtime(args.store.debug, store::run_member(&args, &mut out))?)?,
        Command::DockerOpts(args) => docker_opts::run(&args)?,
        Command::Overlay(args) => with_runtime(false, datapath::run(&args, &mut out, &mut err))??,
        Command::Pki(command) => return pki::run(command),
        Command::Demo(args) => return demo::run(args),
        Command::Completions { shell } => {
            complete::print(shell, &mut out)?;
            Exit::Success
        }
    };
    out.flush()?;
    Ok(exit.into())
}

fn with_runtime<T>(debug: bool, work: impl Future<Output = T>) -> io::Result<T> {
    if debug {
        // The client logs its requests as curl commands; nothing else is of interest here.
        tracing_subscriber::fmt()
            .with_env_filter("store=debug,cli=debug")
            .with_writer(io::stderr)
            .with_target(false)
            .with_level(false)
            .without_time()
            .init();
    }
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

/// Prints why a command on keys failed, and tells the exit code.
fn ended(result: Result<(), store::StoreError>) -> io::Result<Exit> {
    match result {
        Ok(()) => Ok(Exit::Success),
        Err(store::StoreError::Io(error)) => Err(error),
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            Ok(error.exit())
        }
    }
}
