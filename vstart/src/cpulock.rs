//! Which processor of the host a machine may use, in vkernel's words.

use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// A lock on processors. A UML machine has one processor, so that mapping it and locking it are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuLock {
    /// Any of them.
    #[default]
    Any,
    /// This one.
    Cpu(usize),
}

/// Why there is no lock.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CpuLockError {
    /// The text says nothing of the kind.
    #[error("'{0}' is no lock: use any, map, map,N or N, where N is the number of a processor")]
    Syntax(String),
    /// The processor is not there, or not for us.
    #[error("cannot lock a machine to processor {0}: this command may use {1}")]
    Absent(usize, String),
    /// The system refused.
    #[error("cannot lock a machine to a processor")]
    System(#[from] nix::Error),
}

impl CpuLock {
    /// Checks that the processor is there.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(self) -> Result<(), CpuLockError> {
        let Self::Cpu(wanted) = self else {
            return Ok(());
        };
        let usable = sched_getaffinity(Pid::from_raw(0))?;
        let usable: Vec<usize> = (0..CpuSet::count())
            .filter(|number| usable.is_set(*number).unwrap_or(false))
            .collect();
        if usable.contains(&wanted) {
            return Ok(());
        }
        let usable: Vec<String> = usable.iter().map(ToString::to_string).collect();
        Err(CpuLockError::Absent(wanted, usable.join(", ")))
    }

    /// Locks this process, and what it will start.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn apply(self) -> Result<(), CpuLockError> {
        if let Self::Cpu(number) = self {
            let mut set = CpuSet::new();
            set.set(number)?;
            sched_setaffinity(Pid::from_raw(0), &set)?;
        }
        Ok(())
    }

    /// The number of the one processor.
    pub const fn cpu(self) -> Option<usize> {
        match self {
            Self::Any => None,
            Self::Cpu(number) => Some(number),
        }
    }
}

impl FromStr for CpuLock {
    type Err = CpuLockError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = match text {
            "any" => return Ok(Self::Any),
            "map" => "0",
            _ => text.strip_prefix("map,").unwrap_or(text),
        };
        if !number.bytes().all(|c| c.is_ascii_digit()) {
            return Err(CpuLockError::Syntax(text.to_owned()));
        }
        let number = number
            .parse()
            .map_err(|_| CpuLockError::Syntax(text.to_owned()))?;
        Ok(Self::Cpu(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_vkernel_are_read() {
        for (text, lock) in [
            ("any", CpuLock::Any),
            ("map", CpuLock::Cpu(0)),
            ("map,3", CpuLock::Cpu(3)),
            ("2", CpuLock::Cpu(2)),
        ] {
            assert_eq!(text.parse(), Ok(lock), "{text}");
        }
        for text in ["", "all", "map,", "map 1", "-1", "+1", "map,x"] {
            assert_eq!(
                text.parse::<CpuLock>(),
                Err(CpuLockError::Syntax(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn a_processor_must_be_there() {
        assert_eq!(CpuLock::Any.check(), Ok(()));
        assert!(matches!(
            CpuLock::Cpu(1_000_000).check(),
            Err(CpuLockError::Absent(1_000_000, _))
        ));
    }
}
