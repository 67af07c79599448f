//! The laboratory of `sifr-vmm`: our host kernel in QEMU, in it the shipped monitor and guests that a test
//! made for it.
//!
//! Owns: three sides of a scenario. On this machine [`run`] boots a node whose init is the program
//! `vmm-node`; in the node [`node`] runs the scenarios of one group, with [`toolkit`]; in a guest, [`guest`].
//! Refuses: the node's agents. What stands between them and a monitor is tested on the booted image.

mod boot;
pub mod guest;
pub mod link;
pub mod node;
pub mod report;
pub mod scenario;
pub mod tenant;
pub mod toolkit;

pub use boot::{run, run_with_pauses};

/// The environment variable, set on the node's kernel command line, that names a group, or a group and a
/// scenario with a slash between.
pub const GROUP: &str = "nested";
/// The environment variable, set on a guest's kernel command line, that names the guest's program.
pub const GUEST: &str = "guest";
/// The environment variable that names a tenant's program, in a container in a guest with our own init.
pub const TENANT: &str = "tenant";
/// The environment variable of this machine that picks one scenario of a group.
pub const ONLY: &str = "NESTED_SCENARIO";
/// The environment variable of this machine that holds a seed for scenarios with random parts, or several as
/// `first..end`, so that what one of them found is found again.
pub const SEED: &str = "NESTED_SEED";
/// Its name on the node's kernel command line.
const SEED_WORD: &str = "seed";

/// Files of the node.
const INIT: &str = "/init";
const VMM: &str = "/bin/sifr-vmm";
const KERNEL: &str = "/guest/kernel";
/// The node's own kernel, for guests that boot a bzImage.
const BZIMAGE: &str = "/guest/bzImage";
const INITRAMFS: &str = "/guest/initramfs";
/// iproute2, by which the manual makes TAPs.
const IP: &str = "/usr/sbin/ip";
const HOSTILE: &str = "/guest/hostile";
/// An EROFS image, for guests that have one as memory, and for containers.
const IMAGE: &str = "/guest/image";
/// Our own init's archive, without a run specification.
const CONTAINER_INITRAMFS: &str = "/guest/container";
/// This very program, in that image.
const PROGRAM: &str = "/program";
