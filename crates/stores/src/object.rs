//! What a store holds, and under which name.
//!
//! Owns: `<64 hex>.flist`, `.chunks`, `.trace` and `chunks/<2 hex>/<62 hex>`, below the root of every store that has paths.
//! Refuses: other names; what else lies in a store is not ours.

use types::Digest;

/// A content-addressed object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    Flist(Digest),
    /// The chunks of an encrypted image, whose flist is not in the store.
    Roll(Digest),
    /// What a first run of an flist touched, beside it. Its name says nothing of its content.
    Trace(Digest),
    /// By the hash of its stored bytes.
    Chunk(Digest),
}

impl Object {
    pub fn path(&self) -> String {
        match self {
            Self::Flist(digest) => format!("{}.flist", digest.hex()),
            Self::Roll(digest) => format!("{}.chunks", digest.hex()),
            Self::Trace(digest) => format!("{}.trace", digest.hex()),
            Self::Chunk(stored) => {
                let hex = stored.hex();
                format!("chunks/{}/{}", &hex[..2], &hex[2..])
            }
        }
    }

    /// `None`: no object of ours.
    pub fn parse(path: &str) -> Option<Self> {
        let digest = |hex: &str| Digest::from_hex(hex).ok();
        let object = match path.strip_prefix("chunks/") {
            Some(rest) => Self::Chunk(digest(&rest.replacen('/', "", 1))?),
            None => match path.rsplit_once('.')? {
                (hex, "flist") => Self::Flist(digest(hex)?),
                (hex, "chunks") => Self::Roll(digest(hex)?),
                (hex, "trace") => Self::Trace(digest(hex)?),
                _ => return None,
            },
        };
        (object.path() == path).then_some(object)
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flist(digest) => write!(f, "flist {digest}"),
            Self::Roll(digest) => write!(f, "list of chunks of {digest}"),
            Self::Trace(digest) => write!(f, "trace of {digest}"),
            Self::Chunk(stored) => write!(f, "chunk {stored}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_others_are_not_ours() {
        let digest = Digest([0xab; 32]);
        for object in [
            Object::Flist(digest),
            Object::Roll(digest),
            Object::Trace(digest),
            Object::Chunk(digest),
        ] {
            assert_eq!(Object::parse(&object.path()), Some(object));
        }
        let hex = digest.hex();
        for other in [
            "index.html",
            "chunks/ab",
            &format!("chunks/{hex}"),
            &format!("chunks/a/b{}", &hex[2..]),
            &format!("x/{hex}.flist"),
            &format!("{}.flist", hex.to_uppercase()),
        ] {
            assert_eq!(Object::parse(other), None, "{other}");
        }
    }
}
