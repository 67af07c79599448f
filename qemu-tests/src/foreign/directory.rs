//! A directory of this machine with what no tar has, or only this machine makes so.
//!
//! Owns: a socket, a file with holes, links, times. Refuses: what only root can make.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;

/// Fills a new directory.
pub fn fill(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("a/b/c"))?;
    let _listener = UnixListener::bind(root.join("socket"))?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(50 << 20)?;
    sparse.write_all_at(b"in the middle", 20 << 20)?;
    fs::write(root.join("file"), "content")?;
    fs::hard_link(root.join("file"), root.join("a/b/hard"))?;
    symlink("a/b/c", root.join("link"))?;
    xattr::set(root.join("file"), "user.note", b"hello")?;
    fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o4711))?;
    let time = UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321);
    let times = FileTimes::new().set_modified(time);
    for path in ["file", "sparse", "a/b/c"] {
        File::open(root.join(path))?.set_times(times)?;
    }
    Ok(())
}
