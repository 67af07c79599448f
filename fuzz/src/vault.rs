//! Disks that come from elsewhere, and a TPM that somebody has put in between.
//!
//! Owns: that a header which is accepted is written and read again as the same, and that nothing is taken from who is no TPM.

use std::io::{self, Read, Write};

use ::vault::VolumeKey;
use ::vault::luks::{HEADERS_BYTES, Header, Recovery, fuzz};
use ::vault::recovery::PaperShare;
use ::vault::sealed::{Recipient, RecipientSecret};
use ::vault::tpm::{Sealed, Tpm};

use crate::Target;
use crate::choices::{Choices, Made};

pub(crate) const TARGETS: [Target; 3] = [
    Target {
        name: "vault-luks",
        bytes_max: 4096,
        run: luks,
        seeds: || vec![fuzz::json(&header())],
    },
    Target {
        name: "vault-share",
        bytes_max: 300,
        run: share,
        seeds: || {
            let (_, shares) = ::vault::recovery::make(2, 2).expect("shares");
            let line = |share: &PaperShare| share.line().as_bytes().to_vec();
            shares.iter().map(line).collect()
        },
    },
    Target {
        name: "vault-tpm",
        bytes_max: 2048,
        run: tpm,
        seeds: || {
            let handle = answer(&[0x80, 0, 0, 1]);
            let public = [
                &STORAGE_KEY[..],
                &[0, 32],
                &GENERATOR[0],
                &[0, 32],
                &GENERATOR[1],
            ];
            let public = [&[0, 90][..], &public.concat()].concat();
            let primary = answer(&[&[0x80, 0, 0, 2, 0, 0, 0, 92][..], &public].concat());
            let session = answer(&[&[3, 0, 0, 0, 0, 32][..], &[9; 32]].concat());
            let secret = [&[0, 0, 0, 34, 0, 32][..], &[7; 32], &[0, 32], &[5; 32]];
            let secret = [&secret.concat()[..], &[0x41, 0, 32], &[6; 32]].concat();
            // A key, what is loaded below it, a session, a policy, the secret, and what is forgotten between.
            let all = [
                &primary,
                &handle,
                &session,
                &answer(&[]),
                &answer(&[]),
                &answer(&secret),
            ];
            let made = all.iter().fold(Made::default(), |made, one| made.long(one));
            vec![made.0]
        },
    },
];

/// The description of the key that is asked for, up to its point (TCG SRK template, ECC P-256).
const STORAGE_KEY: [u8; 22] = [
    0, 0x23, 0, 0x0b, 0, 3, 4, 0x72, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10,
];

/// A point of P-256, so that there is a key to agree on.
const GENERATOR: [[u8; 32]; 2] = [
    [
        0x6b, 0x17, 0xd1, 0xf2, 0xe1, 0x2c, 0x42, 0x47, 0xf8, 0xbc, 0xe6, 0xe5, 0x63, 0xa4, 0x40,
        0xf2, 0x77, 0x03, 0x7d, 0x81, 0x2d, 0xeb, 0x33, 0xa0, 0xf4, 0xa1, 0x39, 0x45, 0xd8, 0x98,
        0xc2, 0x96,
    ],
    [
        0x4f, 0xe3, 0x42, 0xe2, 0xfe, 0x1a, 0x7f, 0x9b, 0x8e, 0xe7, 0xeb, 0x4a, 0x7c, 0x0f, 0x9e,
        0x16, 0x2b, 0xce, 0x33, 0x57, 0x6b, 0x31, 0x5e, 0xce, 0xcb, 0xb6, 0x40, 0x68, 0x37, 0xbf,
        0x51, 0xf5,
    ],
];

fn header() -> Header {
    let key = VolumeKey::new([5; 64]);
    let mut header = Header::new(&key, 512).expect("a header");
    let slot = header.add_slot(&key, b"x").expect("a slot").number;
    let recovery = Recovery {
        slot,
        recipient: Recipient([1; 32]),
        sealed: vec![2; 9],
    };
    header.set_recovery_token(&recovery).expect("a token");
    let sealed = Sealed {
        public: vec![3; 9],
        private: vec![4; 9],
    };
    header.set_node_token(slot, &sealed).expect("a token");
    header
}

/// The metadata, in a header whose sums are right.
fn luks(json: &[u8]) {
    let Ok(mut header) = Header::parse(&fuzz::around(json)) else {
        return;
    };
    let _ = header.segment().expect("what is accepted has data");
    let _ = (header.node_token(), header.recovery());
    for slot in header.slots() {
        let area = header.area(slot).expect("a slot of ours has a place");
        assert!(area.offset >= HEADERS_BYTES as u64 && area.range().end <= 16 << 20);
    }
    if let Ok(bytes) = header.encode() {
        assert_eq!(Header::parse(&bytes).expect("what we write"), header);
    }
    header.remove_slot(0);
    let _ = header.set_node_token(
        0,
        &Sealed {
            public: Vec::new(),
            private: Vec::new(),
        },
    );
}

fn share(line: &[u8]) {
    let Ok(text) = std::str::from_utf8(line) else {
        return;
    };
    if let Ok(share) = text.parse::<PaperShare>() {
        let again: PaperShare = share.line().parse().expect("what we write");
        assert_eq!(again, share);
        let _ = ::vault::recovery::combine(&[share]);
    }
    let _ = RecipientSecret::new(::vault::Secret::new([1; 32])).open("x", line);
}

struct Liar<'a>(Choices<'a>);

impl Read for Liar<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let answer = self.0.long();
        let length = answer.len().min(buffer.len());
        buffer[..length].copy_from_slice(&answer[..length]);
        Ok(length)
    }
}

impl Write for Liar<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn answer(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(10 + body.len()).expect("short").to_be_bytes();
    [&[0x80, 1][..], &length, &[0; 4], body].concat()
}

fn sealed() -> Sealed {
    Sealed {
        public: vec![1; 80],
        private: vec![2; 200],
    }
}

fn tpm(input: &[u8]) {
    let sealed = sealed();
    let unsealed = Tpm::new(Liar(Choices(input))).unseal(&sealed);
    assert!(
        unsealed.is_err(),
        "nobody but the TPM knows the session's key"
    );
    let _ = Tpm::new(Liar(Choices(input))).seal(&::vault::Secret::new([3; 32]));
    let _ = Tpm::new(Liar(Choices(input))).register();
}

#[cfg(test)]
mod tests {
    use ::vault::tpm::{Command, TpmError};

    use super::*;

    #[test]
    fn the_seed_of_a_tpm_comes_as_far_as_the_secret() {
        let seed = (TARGETS[2].seeds)()[0].clone();
        let unsealed = Tpm::new(Liar(Choices(&seed))).unseal(&sealed());
        let forged = matches!(unsealed, Err(TpmError::Forged(Command::Unseal)));
        assert!(forged, "{unsealed:?}");
    }
}
