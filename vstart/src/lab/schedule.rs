//! Which machine is started next. Pure.

use std::collections::BTreeSet;

use super::dep::Needs;
use crate::name::MachineName;

/// Machines still to be started, in order, and how many may be at once.
#[derive(Clone, Debug)]
pub struct Schedule {
    waiting: Vec<(MachineName, BTreeSet<MachineName>)>,
    starting: usize,
    limit: usize,
}

impl Schedule {
    /// Starts `machines`, in this order where `needs` does not demand another. Needs beyond them count as met.
    ///
    /// `needs` must be free of circles: [`super::dep::Dep::parse`] tells of those.
    pub fn new(machines: &[MachineName], needs: &Needs, limit: usize) -> Self {
        let waiting = machines
            .iter()
            .map(|name| {
                let needs = needs.get(name).into_iter().flatten();
                (
                    name.clone(),
                    needs.filter(|need| machines.contains(need)).cloned().collect(),
                )
            })
            .collect();
        Self {
            waiting,
            starting: 0,
            limit: limit.max(1),
        }
    }

    /// A machine to start now; its end must be told by [`Schedule::done`].
    pub fn start_one(&mut self) -> Option<MachineName> {
        if self.starting >= self.limit {
            return None;
        }
        let free = self.waiting.iter().position(|(_, needs)| needs.is_empty())?;
        self.starting += 1;
        Some(self.waiting.remove(free).0)
    }

    /// Takes note that a machine is started, or cannot be. Then those are returned that wait for it in vain.
    pub fn done(&mut self, name: &MachineName, started: bool) -> Vec<MachineName> {
        self.starting = self.starting.saturating_sub(1);
        if started {
            for (_, needs) in &mut self.waiting {
                needs.remove(name);
            }
            return Vec::new();
        }
        let mut lost = vec![name.clone()];
        while let Some(at) = self
            .waiting
            .iter()
            .position(|(_, needs)| lost.iter().any(|name| needs.contains(name)))
        {
            lost.push(self.waiting.remove(at).0);
        }
        lost.split_off(1)
    }

    /// Whether nothing is left to start and nothing is being started.
    pub const fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.starting == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(number: usize) -> MachineName {
        format!("m{number}").parse().unwrap()
    }

    proptest! {
        /// Whatever ends when and how, everybody is started or given up once, after those waited for.
        #[test]
        fn all_have_their_turn(
            edges in prop::collection::vec((0usize..8, 0usize..8), 0..16),
            limit in 1usize..5,
            ends in prop::collection::vec((any::<prop::sample::Index>(), prop::bool::weighted(0.8)), 8),
        ) {
            let machines: Vec<_> = (0..8).map(name).collect();
            let mut needs = Needs::new();
            for (a, b) in edges.iter().filter(|(a, b)| a > b) {
                needs.entry(name(*a)).or_default().insert(name(*b));
            }
            let mut schedule = Schedule::new(&machines, &needs, limit);
            let (mut starting, mut good, mut lost) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
            let mut ends = ends.into_iter();
            while !schedule.is_over() {
                while let Some(machine) = schedule.start_one() {
                    prop_assert!(needs.get(&machine).into_iter().flatten().all(|need| good.contains(need)));
                    starting.push(machine);
                }
                prop_assert!(!starting.is_empty() && starting.len() <= limit);
                let (which, well) = ends.next().expect("each machine ends once");
                let machine = starting.remove(which.index(starting.len()));
                let given_up = schedule.done(&machine, well);
                prop_assert!(!well || given_up.is_empty());
                for machine in given_up {
                    prop_assert!(lost.insert(machine));
                }
                let fate = if well { &mut good } else { &mut lost };
                prop_assert!(fate.insert(machine));
            }
            prop_assert_eq!(good.len() + lost.len(), 8);
            prop_assert!(good.is_disjoint(&lost));
        }
    }

    #[test]
    fn what_is_not_to_be_started_is_not_waited_for() {
        let needs: Needs = [(name(1), [name(0)].into())].into();
        let mut schedule = Schedule::new(&[name(1)], &needs, 1);
        assert_eq!(schedule.start_one(), Some(name(1)));
        assert_eq!(schedule.start_one(), None);
        assert_eq!(schedule.done(&name(1), true), []);
        assert!(schedule.is_over());
    }
}
