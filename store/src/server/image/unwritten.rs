//! Paths that have changed and could not be written: they go with the next changes. Pure.

/// Bytes of paths that are remembered. Beyond that everything is written anew once there is room.
const MAX_BYTES: usize = 32 << 20;
/// What a path takes beside its bytes.
const PATH_BYTES: usize = 48;

/// The paths.
#[derive(Debug, Default)]
pub(super) struct Unwritten {
    paths: Vec<String>,
    too_many: bool,
}

impl Unwritten {
    /// These are to be remembered as well.
    pub(super) fn add(&mut self, paths: Vec<String>) {
        if self.too_many || paths.is_empty() {
            return;
        }
        if self.paths.is_empty() {
            self.paths = paths;
        } else {
            self.paths.extend(paths);
            self.paths.sort_unstable();
            self.paths.dedup();
        }
        let bytes: usize = self.paths.iter().map(|path| path.len() + PATH_BYTES).sum();
        if bytes > MAX_BYTES {
            *self = Unwritten { paths: Vec::new(), too_many: true };
        }
    }

    /// Whether there is anything.
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty() && !self.too_many
    }

    /// Whether some are forgotten, so that only everything can be written.
    pub(super) fn are_too_many(&self) -> bool {
        self.too_many
    }

    /// Takes them, to be written or added again.
    pub(super) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.paths)
    }

    /// Everything is written.
    pub(super) fn clear(&mut self) {
        *self = Unwritten::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_remembered_once_and_not_without_end() {
        let mut unwritten = Unwritten::default();
        unwritten.add(vec!["/1/b".into(), "/1/c".into()]);
        unwritten.add(vec!["/1/a".into(), "/1/c".into()]);
        assert_eq!(unwritten.take(), ["/1/a", "/1/b", "/1/c"]);
        assert!(unwritten.is_empty());
        for n in 0..20 {
            unwritten.add((0..100_000).map(|k| format!("/1/queue/{n}/{k:020}")).collect());
            let bytes: usize = unwritten.paths.iter().map(|path| path.len() + PATH_BYTES).sum();
            assert!(bytes <= MAX_BYTES);
        }
        assert!(unwritten.are_too_many() && !unwritten.is_empty() && unwritten.take().is_empty());
        unwritten.clear();
        assert!(unwritten.is_empty());
    }
}
