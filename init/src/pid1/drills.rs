//! Drills: processes that were killed because the owner asked for it.
//!
//! Owns: which of them have not ended yet, and what the console says.
//! Refuses: killing, and whatever follows from the end: that is the same as after a crash.

use std::fmt;

use crate::wire::Victim;

/// One entry for each process, so no more than pid1 has children.
#[derive(Debug, Default)]
pub(super) struct Drills(Vec<(i32, Victim)>);

impl Drills {
    pub(super) fn begin(&mut self, pid: i32, victim: Victim) {
        if self.0.iter().all(|(other, _)| *other != pid) {
            self.0.push((pid, victim));
        }
    }

    /// The process has been reaped. Gives whose it was, if a drill killed it.
    pub(super) fn ended(&mut self, pid: i32) -> Option<Victim> {
        let at = self.0.iter().position(|(other, _)| *other == pid)?;
        Some(self.0.swap_remove(at).1)
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("node"),
            Self::Chunks => f.write_str("chunks"),
            Self::Ingress => f.write_str("ingress"),
            Self::Machine { vm } => write!(f, "the VMM of {vm}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_over_once_when_its_process_has_ended() {
        let mut drills = Drills::default();
        assert_eq!(drills.ended(7), None, "a crash is no drill");
        drills.begin(7, Victim::Chunks);
        drills.begin(7, Victim::Chunks);
        drills.begin(9, Victim::Node);
        assert_eq!(drills.ended(7), Some(Victim::Chunks));
        assert_eq!(drills.ended(7), None, "the number may be used again");
        assert_eq!(drills.ended(9), Some(Victim::Node));
    }
}
