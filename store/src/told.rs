//! What a test has had the log told. For tests only.

use std::io::{self, Write};
use std::sync::{Arc, Once};

use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// The log of this thread, for as long as it is kept. A test's runtime has no other threads.
pub(crate) struct Told {
    lines: Lines,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Told {
    /// Listens from now on.
    pub(crate) fn listen() -> Told {
        everybody_is_asked();
        let lines = Lines::default();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(lines.clone()).finish();
        Told { lines, _guard: tracing::subscriber::set_default(log) }
    }

    /// In how many lines there is `text`.
    pub(crate) fn times(&self, text: &str) -> usize {
        self.text().lines().filter(|line| line.contains(text)).count()
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lines.0.lock()).into_owned()
    }
}

/// With a single subscriber in the process, tracing asks the thread that comes to a line first whether anybody listens, and
/// remembers that for all. Tests run beside each other, so there are two more, for ever.
fn everybody_is_asked() {
    static MADE: Once = Once::new();
    MADE.call_once(|| {
        for _ in 0..2 {
            let deaf = tracing_subscriber::fmt().with_writer(io::sink).finish();
            std::mem::forget(tracing::Dispatch::new(deaf));
        }
    });
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        self.clone()
    }
}
