//! Netlink sockets.
//!
//! Owns: requests and their answers. Refuses: answers from anybody but the kernel.
