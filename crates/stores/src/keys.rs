//! Access keys of S3, from where its tools keep them.
//!
//! Owns: reading the environment and the shared credentials file. Refuses: `~/.aws/config`, roles and processes that
//! give keys.

use std::path::PathBuf;
use std::{fs, io};

use rusty_s3::Credentials;

/// Longest credentials file: each profile has a few lines.
const FILE_BYTES_MAX: u64 = 1 << 20;
const PROFILE: &str = "default";

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has no profile {profile:?} with aws_access_key_id and aws_secret_access_key", path.display())]
    Profile { path: PathBuf, profile: String },
}

/// An access key, or none: then requests are not signed.
#[derive(Clone, Default)]
pub struct Keys(pub(crate) Option<Credentials>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = self.0.as_ref().map(Credentials::key);
        f.debug_tuple("Keys").field(&key).finish()
    }
}

impl Keys {
    pub fn new(id: &str, secret: &str) -> Self {
        Self(Some(Credentials::new(id, secret)))
    }

    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`; else the profile `AWS_PROFILE` of
    /// `AWS_SHARED_CREDENTIALS_FILE` or `~/.aws/credentials`; else none.
    pub fn of_this_machine(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, KeysError> {
        let id = variable("AWS_ACCESS_KEY_ID");
        if let (Some(id), Some(secret)) = (id, variable("AWS_SECRET_ACCESS_KEY")) {
            let token = variable("AWS_SESSION_TOKEN");
            return Ok(Self(Some(made(&id, &secret, token.as_deref()))));
        }
        let named = variable("AWS_PROFILE");
        let file = variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
        let home = || Some(PathBuf::from(variable("HOME")?).join(".aws/credentials"));
        let Some(path) = file.or_else(home) else {
            return Ok(Self(None));
        };
        let is_there = fs::metadata(&path).is_ok_and(|m| m.len() <= FILE_BYTES_MAX);
        if !is_there && named.is_none() {
            return Ok(Self(None));
        }
        let text = fs::read_to_string(&path).map_err(|source| KeysError::Read {
            path: path.clone(),
            source,
        })?;
        let profile = named.as_deref().unwrap_or(PROFILE);
        match read(&text, profile) {
            Some(found) => Ok(Self(Some(found))),
            None if named.is_none() => Ok(Self(None)),
            None => Err(KeysError::Profile {
                path,
                profile: profile.to_owned(),
            }),
        }
    }
}

fn made(id: &str, secret: &str, token: Option<&str>) -> Credentials {
    match token {
        Some(token) => Credentials::new_with_token(id, secret, token),
        None => Credentials::new(id, secret),
    }
}

/// One profile of a credentials file.
fn read(text: &str, profile: &str) -> Option<Credentials> {
    let (mut inside, mut id, mut secret, mut token) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = section.trim() == profile;
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| inside) else {
            continue;
        };
        let place = match key.trim() {
            "aws_access_key_id" => &mut id,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => continue,
        };
        *place = Some(value.trim());
    }
    Some(made(id?, secret?, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\n[default]\naws_access_key_id = A\naws_secret_access_key=B=\n\
        [ci]\naws_access_key_id=C\naws_secret_access_key=D\naws_session_token = E\n";

    #[test]
    fn a_profile_of_the_shared_file_is_read() {
        let default = read(FILE, "default").expect("keys");
        let (id, secret) = (default.key(), default.secret());
        assert_eq!((id, secret, default.token()), ("A", "B=", None));
        assert_eq!(read(FILE, "ci").expect("keys").token(), Some("E"));
        assert!(read(FILE, "other").is_none());
    }

    #[test]
    fn the_environment_goes_first_and_a_named_profile_must_be_there() {
        let home = tempfile::tempdir().expect("temp");
        let path = home.path().join("credentials");
        fs::write(&path, FILE).expect("writes");
        let file = path.display().to_string();
        let keys = |set: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = set.iter().find(|(n, _)| *n == name);
                let file = (name == "AWS_SHARED_CREDENTIALS_FILE").then(|| file.clone());
                found.map(|(_, value)| (*value).to_owned()).or(file)
            };
            Keys::of_this_machine(&variable).map(|k| k.0.map(|c| c.key().to_owned()))
        };
        let both = [("AWS_ACCESS_KEY_ID", "X"), ("AWS_SECRET_ACCESS_KEY", "Y")];
        assert_eq!(keys(&both).expect("keys").as_deref(), Some("X"));
        assert_eq!(keys(&[]).expect("keys").as_deref(), Some("A"));
        assert_eq!(
            keys(&[("AWS_PROFILE", "ci")]).expect("keys").as_deref(),
            Some("C")
        );
        assert!(keys(&[("AWS_PROFILE", "gone")]).is_err());
    }
}
