//! The image's own files, read inside the guest, and lines from the host.

use crate::Target;
use crate::choices::{Choices, Made};

pub(crate) const TARGETS: [Target; 2] = [
    Target {
        name: "guest-control",
        bytes_max: 8192,
        run: control,
        seeds: || {
            let lines = b"\"stop\"\n{\"signal\":{\"number\":10}}\n";
            vec![Made::default().u8(7).raw(lines).0]
        },
    },
    Target {
        name: "guest-user",
        bytes_max: 1024,
        run: user,
        seeds: users,
    },
];

/// Largest user or group number (what Docker and runc allow).
const ID_MAX: u32 = i32::MAX.unsigned_abs();

fn user(input: &[u8]) {
    let mut choices = Choices(input);
    let pieces = [choices.short(), choices.long(), choices.rest()];
    let [spec, passwd, group] = pieces.map(String::from_utf8_lossy);
    let Some((uid, gid, groups, home)) = guest::fuzz::user(&spec, &passwd, &group) else {
        return;
    };
    assert!(uid <= ID_MAX && gid <= ID_MAX);
    assert!(groups.iter().all(|gid| *gid <= ID_MAX));
    assert!(groups.windows(2).all(|w| w[0] < w[1]), "each group once");
    assert!(home.starts_with('/'));
    if spec.is_empty() && passwd.is_empty() {
        assert_eq!((uid, gid), (0, 0));
    }
}

fn users() -> Vec<Vec<u8>> {
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:\n12:x:13:14::home:\n";
    let group = b"root:x:0:\nwww:x:33:\nlogs:x:40:web,root\nwheel:x:41:web\n";
    ["", "web", "33", "web:logs", "33:40", "12", "7:www"]
        .map(|spec| {
            let made = Made::default().short(spec.as_bytes());
            made.long(passwd).raw(group).0
        })
        .to_vec()
}

/// However the stream is cut, it holds the same messages.
fn control(input: &[u8]) {
    let mut choices = Choices(input);
    let size = usize::from(choices.u8()).max(1);
    let stream = choices.rest();
    let whole = guest::fuzz::messages([stream]);
    let pieces = guest::fuzz::messages(stream.chunks(size));
    assert_eq!(whole, pieces);
}
