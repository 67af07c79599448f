//! Which numbers an OCI `User` means in an image.
//!
//! Owns: the six forms of OCI image-spec `config.md`, and reading `/etc/passwd` and `/etc/group`.
//! Refuses: trusting those files. They are the image's: lines that are not what they should be are
//! skipped, as every C library does.

use crate::error::{Result, SetupError};

/// Largest user or group number (what Docker and runc allow; the last of 32 bits means "no change").
const ID_MAX: u32 = i32::MAX.unsigned_abs();
/// Most supplementary groups: the kernel's NGROUPS_MAX.
const GROUPS_MAX: usize = 65_536;

/// Who the program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `spec` (empty = root) against the texts of the image's passwd and group files.
pub(crate) fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Identity> {
    let (user_part, group_part) = match spec.split_once(':') {
        None => (spec, None),
        Some((user, group)) => (user, Some(group)),
    };
    let form = || SetupError::UserForm {
        user: spec.to_owned(),
    };
    if group_part.is_some_and(|g| g.is_empty() || g.contains(':')) {
        return Err(form());
    }
    if user_part.is_empty() && group_part.is_some() {
        return Err(form());
    }
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let number = id(user_part);
    // A name that looks like a number matches either way, whichever comes first: as Docker does it.
    let user = users(passwd).find(|u| u.name == user_part || number == Some(u.uid));
    let uid = match (&user, number) {
        (Some(user), _) => user.uid,
        (None, Some(uid)) => uid,
        (None, None) => {
            return Err(SetupError::NoUser {
                user: user_part.to_owned(),
            });
        }
    };
    let (gid, extra) = match (group_part, &user) {
        (Some(text), _) => (group_id(text, group)?, Vec::new()),
        (None, Some(user)) => (user.gid, memberships(user.name, group)),
        (None, None) => (0, Vec::new()),
    };
    let home = user
        .map(|u| u.home)
        .filter(|h| h.starts_with('/'))
        .unwrap_or("/")
        .to_owned();
    Ok(Identity {
        uid,
        gid,
        groups: extra,
        home,
    })
}

fn group_id(text: &str, group: &str) -> Result<u32> {
    let number = id(text);
    let named = groups(group)
        .find(|g| g.name == text || number == Some(g.gid))
        .map(|g| g.gid);
    named.or(number).ok_or_else(|| SetupError::NoGroup {
        group: text.to_owned(),
    })
}

fn memberships(name: &str, group: &str) -> Vec<u32> {
    let mine = groups(group).filter(|g| g.members.split(',').any(|member| member == name));
    let mut gids: Vec<u32> = mine.map(|g| g.gid).take(GROUPS_MAX).collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let (_comment, home) = (fields.next()?, fields.next().unwrap_or(""));
        (!name.is_empty()).then_some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = id(fields.next()?)?;
        (!name.is_empty()).then_some(Group {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    })
}

/// A plain decimal number in range: no sign, no blank.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n <= ID_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        daemon:x:1:1::/usr/sbin:\n\
        garbage\n:x:7:7::/:\nbad:x:-1:0::/:/bin/sh\n\
        app:x:1000:1001:App:/home/app:/bin/sh\n\
        2000:x:3000:3000::/srv:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\nstaff:x:50:daemon,app\n\
        users:x:100:apples\nwheel2:x:10:app\nbad:x:abc:app\napp:x:1001:\n";

    fn identity(spec: &str) -> (u32, u32, Vec<u32>, String) {
        let found = resolve(spec, PASSWD, GROUP).expect(spec);
        (found.uid, found.gid, found.groups, found.home)
    }

    #[test]
    fn all_six_forms_resolve() {
        let home = |h: &str| h.to_owned();
        assert_eq!(
            identity("app"),
            (1000, 1001, vec![10, 50], home("/home/app"))
        );
        assert_eq!(
            identity("1000"),
            (1000, 1001, vec![10, 50], home("/home/app"))
        );
        assert_eq!(identity("app:staff"), (1000, 50, vec![], home("/home/app")));
        assert_eq!(identity("1000:50"), (1000, 50, vec![], home("/home/app")));
        assert_eq!(
            identity("1000:staff"),
            (1000, 50, vec![], home("/home/app"))
        );
        assert_eq!(
            identity("app:4242"),
            (1000, 4242, vec![], home("/home/app"))
        );
    }

    #[test]
    fn no_user_is_root_and_an_unlisted_number_is_itself() {
        assert_eq!(identity(""), (0, 0, vec![10], "/root".to_owned()));
        assert_eq!(identity("77"), (77, 0, vec![], "/".to_owned()));
        assert_eq!(identity("77:88"), (77, 88, vec![], "/".to_owned()));
        assert_eq!(resolve("", "", "").expect("root").uid, 0);
    }

    #[test]
    fn a_name_of_digits_is_found_as_a_name() {
        assert_eq!(identity("2000").0, 3000);
    }

    #[test]
    fn names_that_are_not_in_the_image_are_errors_that_say_so() {
        let error = |spec| resolve(spec, PASSWD, GROUP).expect_err(spec).to_string();
        assert!(error("nobody").contains("/etc/passwd"));
        assert!(error("app:nogroup").contains("/etc/group"));
        assert!(
            error("bad").contains("/etc/passwd"),
            "a line with a negative number is no user"
        );
        for form in [":", "app:", ":app", "app:staff:x"] {
            assert!(error(form).contains("is not one of"), "{form}");
        }
        assert!(resolve("4294967295", "", "").is_err() && resolve("+1", "", "").is_err());
    }

    proptest! {
        #[test]
        fn whatever_the_files_say_numbers_stay_in_range_and_groups_are_listed_once(
            spec in "[a-c0-3]{0,3}(:[a-c0-3]{0,3}){0,2}",
            passwd in "([a-c0-3]{0,3}:x?:[0-9+-]{0,11}:[0-9]{0,11}:[^:\n]{0,3}:[/.a-c]{0,5}\n?){0,5}",
            group in "([a-c0-3]{0,3}:x?:[0-9]{0,11}:[a-c0-3,]{0,9}\n?){0,5}",
        ) {
            if let Ok(found) = resolve(&spec, &passwd, &group) {
                assert!(found.uid <= ID_MAX && found.gid <= ID_MAX);
                assert!(found.groups.windows(2).all(|w| w[0] < w[1]));
                assert!(found.home.starts_with('/'));
            }
        }
    }

    #[test]
    fn hostile_files_neither_panic_nor_name_anybody() {
        let long = format!("app:x:{}:0::/:\n", "9".repeat(1 << 16));
        for text in [
            "",
            ":::::::",
            "app",
            "app:x",
            "app:x:",
            "\u{0}:x:0:0::/",
            &long,
            "app:x: 1:1::/:",
        ] {
            assert!(resolve("app", text, text).is_err(), "{text:?}");
        }
        let relative = resolve("app", "app:x:5:5::../../etc:\n", "").expect("a user");
        assert_eq!(relative.home, "/");
    }
}
