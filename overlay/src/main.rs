//! `overlayd`: flags and environment to a checked configuration, then the daemon. Exit code 0 after SIGTERM or SIGINT,
//! 1 when something failed or the lease was lost, 2 when the command line or environment is wrong.

use std::process::ExitCode;

use overlay::config::{self, Command, Config, LogFormat};
use overlay::daemon;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
            // Every error of ours says all there is to say by itself; the chain would say it twice.
            tracing::error!("{error}");
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
    // Libraries below us speak only when something is wrong; their chatter would drown ours.
    let targets = Targets::new()
        .with_default(config.log_level.min(tracing::Level::WARN))
        .with_targets(["overlayd", "overlay", "store"].map(|name| (name, config.log_level)));
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(targets);
    match config.log_format {
        LogFormat::Text => registry.with(format.with_ansi(false)).init(),
        LogFormat::Json => registry.with(format.json()).init(),
    }
}
