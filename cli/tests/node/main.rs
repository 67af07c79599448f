//! The `sifr` binary against a node on loopback that keeps its promises in memory.
//!
//! Owns: what a person sees and what a script gets: output, exit status, and what arrives at the node.
//! Refuses: looking inside the program.

#[cfg(test)]
mod bench;
#[cfg(test)]
mod deployments;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod nodes;
