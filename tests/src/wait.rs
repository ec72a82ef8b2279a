//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// How long anything that should happen may take on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `condition` yields something.
///
/// # Panics
/// After [`PATIENCE`], with `what` was waited for.
#[track_caller]
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {} s for this: {what}",
            PATIENCE.as_secs()
        );
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `condition` is true.
///
/// # Panics
/// After [`PATIENCE`], with `what` was waited for.
#[track_caller]
pub fn until_true(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || condition().then_some(()));
}
