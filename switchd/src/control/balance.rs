//! Which domain is to go to another worker, so that all processors have their part of the work.

use crate::datapath::{DomainId, Load};

/// A worker with less to do than this is left alone. It need not be much: on a machine whose processors have others to
/// serve, a worker is asleep, or about to be woken, for most of the time that senders and receivers need.
const MUCH: f64 = 0.1;
/// What must come of it: the busiest worker has no more than this part left of what it had to do. Domains do not go to
/// and fro for less.
const LEFT: f64 = 0.8;

/// The domain of the busiest worker that is to go to the least busy one, and which that is; none if neither would be
/// better off. A worker's time is taken to be spent on its domains by their frames.
pub(super) fn choose(loads: &[Load]) -> Option<(DomainId, usize)> {
    let busiest = loads.iter().max_by(|a, b| a.busy.total_cmp(&b.busy))?;
    let (to, idlest) = loads
        .iter()
        .enumerate()
        .min_by(|(_, a), (_, b)| a.busy.total_cmp(&b.busy))?;
    let frames: u64 = busiest.domains.iter().map(|&(_, frames)| frames).sum();
    let parts = busiest.domains.iter().map(|&(id, part)| {
        let part = busiest.busy * as_float(part) / as_float(frames.max(1));
        (id, (busiest.busy - part).max(idlest.busy + part))
    });
    let (id, then) = parts.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
    (busiest.busy >= MUCH && then <= busiest.busy * LEFT).then_some((id, to))
}

#[expect(clippy::cast_precision_loss, reason = "frames of a second are far below 2^52")]
fn as_float(frames: u64) -> f64 {
    frames as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(busy: f64, domains: &[(u64, u64)]) -> Load {
        let domains = domains.iter().map(|&(id, frames)| (DomainId(id), frames));
        Load {
            busy,
            domains: domains.collect(),
        }
    }

    #[test]
    fn half_of_the_work_goes_to_an_idle_worker() {
        let loads = [
            load(0.1, &[(4, 100)]),
            load(1.0, &[(1, 100), (2, 900), (3, 700)]),
            load(0.0, &[]),
        ];
        assert_eq!(choose(&loads), Some((DomainId(2), 2)));
    }

    #[test]
    fn nothing_goes_where_it_would_be_no_better_off() {
        // All of the work of one domain.
        assert_eq!(choose(&[load(1.0, &[(1, 100), (2, 0)]), load(0.0, &[])]), None);
        // Both have enough of it.
        assert_eq!(
            choose(&[load(1.0, &[(1, 50), (2, 50)]), load(0.9, &[(3, 10)])]),
            None
        );
        // There is hardly any.
        assert_eq!(choose(&[load(0.05, &[(1, 50), (2, 50)]), load(0.0, &[])]), None);
        assert_eq!(choose(&[load(1.0, &[])]), None);
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn no_domain_goes_back() {
        let (one, two) = (load(1.0, &[(1, 100), (2, 100)]), load(0.0, &[]));
        assert!(choose(&[one, two]).is_some_and(|(_, to)| to == 1));
        assert_eq!(choose(&[load(0.5, &[(1, 100)]), load(0.5, &[(2, 100)])]), None);
    }
}
