//! The program `store`: flags to configuration, configuration to a running member, its end to an exit code.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::process::ExitCode;

use store::config::{self, Asked, Config, LogFormat};
use store::server::run::{Ended, run};
use tokio::runtime::{Builder, Runtime};

/// One that is busy with a large message leaves another for what is small.
const OWN_THREADS: usize = 2;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let config = match Config::read(&args, &env) {
        Ok(Asked::Run(config)) => *config,
        Ok(Asked::Version) => return print(&store::version_text()),
        Ok(Asked::Help) => return print(&config::usage()),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "store: error verifying flags, {error}. See 'store --help'.");
            return ExitCode::from(error.exit_code());
        }
    };
    if let Err(error) = start_log(&config) {
        let _ = writeln!(std::io::stderr(), "store: --log-level: {error}");
        return ExitCode::FAILURE;
    }
    let (own, clients) = match runtimes() {
        Ok(runtimes) => runtimes,
        Err(error) => {
            tracing::error!(%error, "cannot start the threads that serve");
            return ExitCode::FAILURE;
        }
    };
    let ended = own.block_on(run(config, clients.handle().clone()));
    clients.shutdown_background();
    own.shutdown_background();
    match ended {
        // As etcd: the shell's code for a signal, but success for a service manager's clean stop.
        Ok(Ended::Signal(number)) if std::process::id() != 1 && std::os::unix::process::parent_id() != 1 => {
            ExitCode::from(u8::try_from(128 + number).unwrap_or(1))
        }
        Ok(Ended::Signal(_)) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One for the other members and this one's own affairs, and one for clients with a thread for each processor: whatever
/// these are busy with, a heartbeat is read in time.
fn runtimes() -> io::Result<(Runtime, Runtime)> {
    let own =
        Builder::new_multi_thread().worker_threads(OWN_THREADS).thread_name("peers").enable_all().build()?;
    Ok((own, Builder::new_multi_thread().thread_name("clients").enable_all().build()?))
}

/// A closed pipe is quiet.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn start_log(config: &Config) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = tracing_subscriber::EnvFilter::builder().parse(&config.log_level)?;
    let writer: fn() -> Box<dyn std::io::Write> =
        if config.log_stdout { || Box::new(std::io::stdout()) } else { || Box::new(std::io::stderr()) };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match config.log_format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
}
