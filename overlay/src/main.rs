//! `overlayd`: flags and environment to a checked configuration, then the daemon. Exit code 0 after SIGTERM or SIGINT,
//! 1 when something failed or the lease was lost, 2 when the command line or environment is wrong.

use std::process::ExitCode;

use overlay::config::{self, Command, Config, LogFormat};
use overlay::daemon;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let config = match config::parse(&args, &|name| std::env::var(name).ok()) {
        Ok(Command::Run(config)) => *config,
        Ok(Command::Version) => {
            eprintln!("v{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Command::Help) => {
            eprint!("{}", config::usage());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("overlayd: {error}\nSee `overlayd -help` for all flags.");
            return ExitCode::from(2);
        }
    };
    log_to_stderr(&config);
    tracing::info!("overlayd v{} starting: {config}", env!("CARGO_PKG_VERSION"));
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(daemon::run(config));
    // What still runs holds nothing that must be finished.
    runtime.shutdown_background();
    Ok(outcome?)
}

fn log_to_stderr(config: &Config) {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(config.log_level);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}
