//! Disks that come from elsewhere, and a TPM that somebody has put in between.
//!
//! Owns: that a header which is accepted is written and read again as the same, and that only what was sealed is unsealed.

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
            let secret = answer(&[&[0, 0, 0, 34, 0, 32][..], &[7; 32]].concat());
            // A key, a session, a policy, the secret, and what is forgotten between.
            let all = [
                &handle,
                &handle,
                &answer(&[]),
                &handle,
                &answer(&[]),
                &secret,
            ];
            let made = all.iter().fold(Made::default(), |made, one| made.long(one));
            vec![made.0]
        },
    },
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

fn tpm(input: &[u8]) {
    let sealed = Sealed {
        public: vec![1; 80],
        private: vec![2; 200],
    };
    let _ = Tpm::new(Liar(Choices(input))).unseal(&sealed);
    let _ = Tpm::new(Liar(Choices(input))).seal(&::vault::Secret::new([3; 32]));
    let _ = Tpm::new(Liar(Choices(input))).register();
}
