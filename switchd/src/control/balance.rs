//! Which domains are to go to another worker, so that all processors have their part of the work.

use std::time::Duration;

use crate::datapath::{DomainId, Load};

/// A worker with less to do than this is left alone. It need not be much: on a machine whose processors have others to
/// serve, a worker is asleep, or about to be woken, for most of the time that senders and receivers need.
const MUCH: f64 = 0.1;
/// What must come of it: the busiest worker has no more than this part left of what it had to do. Domains do not go to
/// and fro for less.
const LEFT: f64 = 0.8;
/// How many times as busy as the other a worker must be to part with one domain, and with some at once. A second tells
/// little about workers that both have enough to do on processors they share with senders and receivers; domains that
/// went on such grounds would be more with one than with the other, and have less each.
const ONE: f64 = 2.0;
const SOME: f64 = 4.0;

/// What a worker did in less time than this says nothing of how busy it is. When several of them find that they are busy
/// at the same time, the second is heard right after all have been asked because of the first.
const GLANCE: Duration = Duration::from_millis(250);

/// Domains that always have more to do after so large a part of their turns are held up by their worker.
const BEHIND: f64 = 0.2;
/// Where each domain of one worker has so many times what each of another has, they take turns.
const UNEVEN: f64 = 1.3;

/// Domains that are to go to another worker, and which that is; none if nobody would be better off.
pub(super) fn choose(loads: &[Load]) -> Option<(Vec<DomainId>, usize)> {
    if loads.iter().any(|load| load.time < GLANCE) {
        return None;
    }
    spread(loads).or_else(|| take_turns(loads))
}

/// Domains of the busiest worker that are to go to the least busy one. A worker's time is taken to be spent on its domains
/// by their frames.
fn spread(loads: &[Load]) -> Option<(Vec<DomainId>, usize)> {
    let busiest = loads.iter().max_by(|a, b| a.busy.total_cmp(&b.busy))?;
    let (to, idlest) = loads
        .iter()
        .enumerate()
        .min_by(|(_, a), (_, b)| a.busy.total_cmp(&b.busy))?;
    let frames: u64 = busiest.domains.iter().map(|domain| domain.frames).sum();
    let part = |frames_of| busiest.busy * as_float(frames_of) / as_float(frames.max(1));
    let mut parts: Vec<(DomainId, f64)> = busiest
        .domains
        .iter()
        .map(|domain| (domain.id, part(domain.frames)))
        .collect();
    parts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let after = |moved: f64| (busiest.busy - moved).max(idlest.busy + moved);
    // One that has much, or as many that have little as it takes.
    let one = parts
        .iter()
        .min_by(|(_, a), (_, b)| after(*a).total_cmp(&after(*b)))?;
    let (mut some, mut moved) = (Vec::new(), 0.0);
    for &(id, part) in &parts {
        let fits = (moved + part) * 2.0 <= busiest.busy - idlest.busy;
        if part > 0.0 && fits && idlest.busy * SOME <= busiest.busy {
            some.push(id);
            moved += part;
        }
    }
    let (ids, then) = match after(one.1) {
        then if then <= after(moved) => (vec![one.0], then),
        _ => (some, after(moved)),
    };
    let apart = idlest.busy * ONE <= busiest.busy;
    (busiest.busy >= MUCH && apart && then <= busiest.busy * LEFT).then_some((ids, to))
}

/// The domain that has been longest where more of them share a worker than elsewhere, to go where fewer do and have more
/// each. That need not be better at once: of three on two workers, each is alone for a third of the time.
fn take_turns(loads: &[Load]) -> Option<(Vec<DomainId>, usize)> {
    let crowds = || {
        (0..)
            .zip(loads)
            .filter_map(|(worker, load)| Some((worker, Crowd::of(load)?)))
    };
    let (_, least) = crowds()
        .filter(|(_, crowd)| crowd.behind >= BEHIND)
        .min_by(|(_, a), (_, b)| a.each.total_cmp(&b.each))?;
    let (to, most) = crowds().max_by(|(_, a), (_, b)| a.each.total_cmp(&b.each))?;
    let uneven = most.each / least.each;
    // What is more than their numbers explain is of another kind: it would only be slowed down.
    let explained = UNEVEN * least.members / most.members;
    (most.members < least.members && (UNEVEN..explained).contains(&uneven)).then(|| (vec![least.oldest], to))
}

/// The domains of a worker that have the most to do.
struct Crowd {
    members: f64,
    /// Frames that each of them has moved at most.
    each: f64,
    /// The part of their turns after which they had more to do.
    behind: f64,
    /// The one that the worker has had for longest.
    oldest: DomainId,
}

impl Crowd {
    fn of(load: &Load) -> Option<Self> {
        let most = load.domains.iter().map(|domain| domain.frames).max()?;
        let busy = || load.domains.iter().filter(|domain| domain.frames * 2 > most);
        let members = as_float(busy().count() as u64);
        Some(Self {
            members,
            each: as_float(most),
            behind: busy().map(|domain| domain.behind).sum::<f64>() / members,
            oldest: busy().max_by_key(|domain| domain.stay)?.id,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "frames of a second are far below 2^52")]
fn as_float(frames: u64) -> f64 {
    frames as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::DomainLoad;

    fn load(busy: f64, domains: &[(u64, u64)]) -> Load {
        let domains = domains.iter().map(|&(id, frames)| DomainLoad {
            id: DomainId(id),
            frames,
            behind: 0.0,
            stay: Duration::ZERO,
        });
        Load {
            time: Duration::from_secs(1),
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
        assert_eq!(choose(&loads), Some((vec![DomainId(2)], 2)));
    }

    #[test]
    fn many_small_ones_go_together() {
        let all: Vec<_> = (0..16).map(|id| (id, 100)).collect();
        let moves = choose(&[load(1.0, &all), load(0.0, &[])]);
        assert!(
            moves.as_ref().is_some_and(|(ids, to)| ids.len() == 8 && *to == 1),
            "{moves:?}"
        );
        // Those that have nothing to do stay.
        let moves = choose(&[
            load(0.5, &[(1, 0), (2, 10), (3, 10), (4, 10), (5, 10)]),
            load(0.1, &[]),
        ]);
        assert_eq!(moves, Some((vec![DomainId(2)], 1)));
    }

    #[test]
    fn a_busy_second_is_no_ground() {
        let half = |first: u64| (first..first + 8).map(|id| (id, 100)).collect::<Vec<_>>();
        assert_eq!(choose(&[load(1.0, &half(0)), load(0.4, &half(8))]), None);
        let two = [(1, 150), (2, 300)];
        assert_eq!(choose(&[load(0.9, &two), load(0.5, &[(3, 100), (4, 100)])]), None);
    }

    #[test]
    fn nor_is_a_glance() {
        let loads = [load(1.0, &[(1, 100), (2, 100)]), load(0.0, &[])];
        assert!(choose(&loads).is_some());
        let glance = loads.map(|load| Load {
            time: Duration::from_millis(2),
            ..load
        });
        assert_eq!(choose(&glance), None);
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

    /// A worker with these domains, which have so many frames, are so far behind, and have been there for so many seconds.
    fn crowd(domains: &[(u64, u64, f64, u64)]) -> Load {
        let domains = domains.iter().map(|&(id, frames, behind, stay)| DomainLoad {
            id: DomainId(id),
            frames,
            behind,
            stay: Duration::from_secs(stay),
        });
        Load {
            domains: domains.collect(),
            ..load(0.7, &[])
        }
    }

    #[test]
    fn three_take_turns_on_two_workers() {
        let loads = [
            crowd(&[(1, 100, 0.5, 1), (2, 100, 0.5, 2)]),
            crowd(&[(3, 190, 0.1, 3), (4, 2, 0.0, 9)]),
        ];
        assert_eq!(choose(&loads), Some((vec![DomainId(2)], 1)));
        // The one that comes has been there for less long than the one that was alone.
        let loads = [
            crowd(&[(1, 190, 0.2, 2)]),
            crowd(&[(3, 100, 0.4, 4), (2, 100, 0.4, 1)]),
        ];
        assert_eq!(choose(&loads), Some((vec![DomainId(3)], 0)));
    }

    #[test]
    fn nobody_takes_turns_for_nothing() {
        let pair = |behind| crowd(&[(1, 100, behind, 1), (2, 100, behind, 2)]);
        // They have what they want, there are as many, all have about as much, or it is another kind of work.
        assert_eq!(choose(&[pair(0.0), crowd(&[(3, 190, 0.1, 3)])]), None);
        assert_eq!(
            choose(&[pair(0.5), crowd(&[(3, 190, 0.1, 3), (4, 190, 0.1, 3)])]),
            None
        );
        assert_eq!(choose(&[pair(0.5), crowd(&[(3, 120, 0.1, 3)])]), None);
        assert_eq!(choose(&[pair(0.5), crowd(&[(3, 1000, 0.1, 3)])]), None);
    }

    #[test]
    fn no_domain_goes_back() {
        let (one, two) = (load(1.0, &[(1, 100), (2, 100)]), load(0.0, &[]));
        assert!(choose(&[one, two]).is_some_and(|(_, to)| to == 1));
        assert_eq!(choose(&[load(0.5, &[(1, 100)]), load(0.5, &[(2, 100)])]), None);
    }
}
