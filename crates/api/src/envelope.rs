//! DSSE envelopes (Dead Simple Signing Envelope, protocol 1.0.2): signed bytes and who signed them.
//!
//! Owns: sealing, and opening in the one safe order: signature first, then trust, then meaning.
//! Refuses: unknown fields, anything but exactly one signature, envelopes over 256 KiB, and to parse a
//! payload before its signature holds.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::{Deserialize, Serialize};
use types::claim::{CLAIM_PAYLOAD_TYPE, Claim, ClaimError};
use types::deployment::{Action, PAYLOAD_TYPE, SpecError, Statement};
use types::mesh::{CARD_PAYLOAD_TYPE, Card, MeshError, Peer};
use types::retire::{
    RECEIPT_PAYLOAD_TYPE, RETIREMENT_PAYLOAD_TYPE, Receipt, Retirement, RetirementError,
};
use types::site::{SITE_PAYLOAD_TYPE, SiteChange, SiteError};
use types::status::{Refusal, RefusalCode};
use types::{Name, PublicKey};

use crate::sign::{self, SecretKey};

pub use types::deployment::ENVELOPE_MAX;

/// A DSSE envelope. What it says is an allegation until [`Envelope::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Envelope {
    pub payload_type: String,
    /// Base64 of the signed bytes.
    pub payload: String,
    pub signatures: Vec<EnvelopeSignature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// Text of the signer's public key.
    pub keyid: String,
    /// Base64 of the 64 bytes.
    pub sig: String,
}

/// A statement whose signature holds and whose signer is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub signer: PublicKey,
    pub statement: Statement,
    /// The bytes that were signed, as they came.
    pub payload: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error(
        "the envelope has {0} bytes, at most {ENVELOPE_MAX} are accepted: make the deployment smaller"
    )]
    TooLarge(usize),
    #[error("the envelope is not a DSSE document: {0}")]
    Json(String),
    #[error("an envelope needs exactly one signature, this one has {0}")]
    Signatures(usize),
    #[error("the envelope's {0} is not base64 of the right length")]
    Base64(&'static str),
    #[error("the signature's keyid {0:?} is not a public key such as ed25519:…")]
    KeyId(String),
    #[error(
        "the signature does not match the payload: sign the bytes again and send them unchanged"
    )]
    BadSignature,
    #[error("the signer {0} is not known here: sign with the owner's key")]
    UnknownKey(PublicKey),
    #[error("the payload type {found:?} is not accepted here: use {expected}")]
    PayloadType {
        found: String,
        expected: &'static str,
    },
    #[error("the signed statement cannot be read: {0}")]
    Statement(String),
    #[error("the signed statement asks for what no node can do: {0}")]
    Spec(SpecError),
    #[error("the signed claim asks for what no node can do: {0}")]
    Claim(ClaimError),
    #[error("the signed wish asks for what no node can do: {0}")]
    Retirement(RetirementError),
    #[error("the signed change of the network asks for what no node can do: {0}")]
    Site(SiteError),
    #[error("a network across nodes: {0}")]
    Mesh(MeshError),
    #[error("the card of {peer} is not signed by that node")]
    Card {
        peer: Name,
        #[source]
        why: Box<EnvelopeError>,
    },
}

impl EnvelopeError {
    /// The word for programs.
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::TooLarge(_) => RefusalCode::TooLarge,
            Self::BadSignature => RefusalCode::BadSignature,
            Self::UnknownKey(_) => RefusalCode::UnknownKey,
            Self::Json(_)
            | Self::Signatures(_)
            | Self::Base64(_)
            | Self::KeyId(_)
            | Self::PayloadType { .. }
            | Self::Statement(_)
            | Self::Spec(_)
            | Self::Claim(_)
            | Self::Mesh(_)
            | Self::Card { .. }
            | Self::Retirement(_)
            | Self::Site(_) => RefusalCode::Malformed,
        }
    }
}

impl From<EnvelopeError> for Refusal {
    fn from(error: EnvelopeError) -> Self {
        Self {
            code: error.code(),
            message: error.to_string(),
        }
    }
}

impl Envelope {
    /// Signs the payload as it stands.
    pub fn seal(key: &SecretKey, payload_type: &str, payload: &[u8]) -> Self {
        let signature = key.sign(&pre_authentication_encoding(payload_type, payload));
        Self {
            payload_type: payload_type.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: vec![EnvelopeSignature {
                keyid: key.public().to_string(),
                sig: STANDARD.encode(signature),
            }],
        }
    }

    /// Writes a statement as JSON and signs it. One that no node would read is an error at once, before
    /// anything is sent for its sake.
    pub fn seal_statement(key: &SecretKey, statement: &Statement) -> Result<Self, EnvelopeError> {
        let payload = serde_json::to_vec(statement).expect("a statement has only text keys");
        Self::seal(key, PAYLOAD_TYPE, &payload).bounded()
    }

    /// The same of a claim to disks.
    pub fn seal_claim(key: &SecretKey, claim: &Claim) -> Result<Self, EnvelopeError> {
        claim.check().map_err(EnvelopeError::Claim)?;
        let payload = serde_json::to_vec(claim).expect("a claim has only text keys");
        Self::seal(key, CLAIM_PAYLOAD_TYPE, &payload).bounded()
    }

    /// The same of a wish to decommission.
    pub fn seal_retirement(key: &SecretKey, wish: &Retirement) -> Result<Self, EnvelopeError> {
        wish.check().map_err(EnvelopeError::Retirement)?;
        let payload = serde_json::to_vec(wish).expect("a wish has only text keys");
        Self::seal(key, RETIREMENT_PAYLOAD_TYPE, &payload).bounded()
    }

    /// The same of a change of a node's network.
    pub fn seal_site(key: &SecretKey, change: &SiteChange) -> Result<Self, EnvelopeError> {
        change.check().map_err(EnvelopeError::Site)?;
        let payload = serde_json::to_vec(change).expect("a change has only text keys");
        Self::seal(key, SITE_PAYLOAD_TYPE, &payload).bounded()
    }

    /// The same of a receipt.
    pub fn seal_receipt(key: &SecretKey, receipt: &Receipt) -> Result<Self, EnvelopeError> {
        let payload = serde_json::to_vec(receipt).expect("a receipt has only text keys");
        Self::seal(key, RECEIPT_PAYLOAD_TYPE, &payload).bounded()
    }

    /// The same of what a node says of itself for a network across nodes.
    pub fn seal_card(key: &SecretKey, card: &Card) -> Result<Self, EnvelopeError> {
        let payload = serde_json::to_vec(card).expect("a card has only text keys");
        Self::seal(key, CARD_PAYLOAD_TYPE, &payload).bounded()
    }

    fn bounded(self) -> Result<Self, EnvelopeError> {
        match self.to_json().len() {
            bytes if bytes > ENVELOPE_MAX => Err(EnvelopeError::TooLarge(bytes)),
            _ => Ok(self),
        }
    }

    pub fn parse(json: &[u8]) -> Result<Self, EnvelopeError> {
        if json.len() > ENVELOPE_MAX {
            return Err(EnvelopeError::TooLarge(json.len()));
        }
        serde_json::from_slice(json).map_err(|error| EnvelopeError::Json(error.to_string()))
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an envelope has only text keys")
    }

    /// The signer and the bytes they signed. Whether the signer is trusted is asked only after the
    /// signature holds, and the payload is given out only after both.
    pub fn verify(
        &self,
        trusted: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<(PublicKey, Vec<u8>), EnvelopeError> {
        let [signature] = self.signatures.as_slice() else {
            return Err(EnvelopeError::Signatures(self.signatures.len()));
        };
        let key_id = || EnvelopeError::KeyId(shortened(&signature.keyid));
        let key: PublicKey = signature.keyid.parse().map_err(|_| key_id())?;
        let payload = decode(&self.payload).ok_or(EnvelopeError::Base64("payload"))?;
        let bytes: [u8; 64] = decode(&signature.sig)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(EnvelopeError::Base64("signature"))?;
        let encoded = pre_authentication_encoding(&self.payload_type, &payload);
        sign::verify(&key, &encoded, &bytes).map_err(|_| EnvelopeError::BadSignature)?;
        if trusted(&key) {
            Ok((key, payload))
        } else {
            Err(EnvelopeError::UnknownKey(key))
        }
    }

    /// Verifies, then reads the payload as a [`Statement`] that passes its own check.
    pub fn open_statement(
        &self,
        trusted: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<Signed, EnvelopeError> {
        let (signer, payload) = self.verify(trusted)?;
        self.is_of(PAYLOAD_TYPE)?;
        let statement: Statement = serde_json::from_slice(&payload)
            .map_err(|error| EnvelopeError::Statement(error.to_string()))?;
        statement.check().map_err(EnvelopeError::Spec)?;
        check_cards(&signer, &statement)?;
        Ok(Signed {
            signer,
            statement,
            payload,
        })
    }

    /// Verifies, then reads the payload as a [`Claim`] that passes its own check.
    pub fn open_claim(
        &self,
        trusted: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<Claim, EnvelopeError> {
        let (_, payload) = self.verify(trusted)?;
        self.is_of(CLAIM_PAYLOAD_TYPE)?;
        let claim: Claim = serde_json::from_slice(&payload)
            .map_err(|error| EnvelopeError::Statement(error.to_string()))?;
        claim.check().map_err(EnvelopeError::Claim)?;
        Ok(claim)
    }

    /// Verifies, then reads the payload as a [`Retirement`] that passes its own check.
    pub fn open_retirement(
        &self,
        trusted: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<Retirement, EnvelopeError> {
        let (_, payload) = self.verify(trusted)?;
        self.is_of(RETIREMENT_PAYLOAD_TYPE)?;
        let wish: Retirement = serde_json::from_slice(&payload)
            .map_err(|error| EnvelopeError::Statement(error.to_string()))?;
        wish.check().map_err(EnvelopeError::Retirement)?;
        Ok(wish)
    }

    /// Verifies, then reads the payload as a [`SiteChange`] that passes its own check.
    pub fn open_site(
        &self,
        trusted: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<SiteChange, EnvelopeError> {
        let (_, payload) = self.verify(trusted)?;
        self.is_of(SITE_PAYLOAD_TYPE)?;
        let change: SiteChange = serde_json::from_slice(&payload)
            .map_err(|error| EnvelopeError::Statement(error.to_string()))?;
        change.check().map_err(EnvelopeError::Site)?;
        Ok(change)
    }

    /// Verifies, then reads the payload as a [`Receipt`].
    pub fn open_receipt(
        &self,
        trusted: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<Receipt, EnvelopeError> {
        let (_, payload) = self.verify(trusted)?;
        self.is_of(RECEIPT_PAYLOAD_TYPE)?;
        serde_json::from_slice(&payload)
            .map_err(|error| EnvelopeError::Statement(error.to_string()))
    }

    /// Verifies, then reads the payload as a [`Card`].
    pub fn open_card(
        &self,
        trusted: impl FnOnce(&PublicKey) -> bool,
    ) -> Result<Card, EnvelopeError> {
        let (_, payload) = self.verify(trusted)?;
        self.is_of(CARD_PAYLOAD_TYPE)?;
        serde_json::from_slice(&payload)
            .map_err(|error| EnvelopeError::Statement(error.to_string()))
    }

    /// What is signed as one thing is never read as another.
    fn is_of(&self, expected: &'static str) -> Result<(), EnvelopeError> {
        if self.payload_type == expected {
            return Ok(());
        }
        let found = shortened(&self.payload_type);
        Err(EnvelopeError::PayloadType { found, expected })
    }
}

/// Every peer of a network is one that its node has signed for this network.
fn check_cards(signer: &PublicKey, statement: &Statement) -> Result<(), EnvelopeError> {
    let Action::Deploy(deployment) = &statement.action else {
        return Ok(());
    };
    for (network, spec) in deployment.networks() {
        let about = (signer, &statement.name, network);
        let peers = spec.mesh.iter().flat_map(|mesh| &mesh.peers);
        for (name, peer) in peers {
            if peer.node == statement.node {
                let peer = name.clone();
                return Err(EnvelopeError::Mesh(MeshError::Twice { peer }));
            }
            let card = card_of(name, peer)?;
            card.confirms(about, name, peer)
                .map_err(EnvelopeError::Mesh)?;
        }
    }
    Ok(())
}

fn card_of(name: &Name, peer: &Peer) -> Result<Card, EnvelopeError> {
    let card = Envelope::parse(peer.card.as_bytes());
    let card = card.and_then(|card| card.open_card(|key| *key == peer.node));
    card.map_err(|why| EnvelopeError::Card {
        peer: name.clone(),
        why: Box::new(why),
    })
}

/// DSSE's PAE: `DSSEv1 <length> <type> <length> <payload>`.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

/// The protocol lets a sender choose either alphabet.
fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD
        .decode(text)
        .or_else(|_| URL_SAFE.decode(text))
        .ok()
}

/// Foreign text for a message: enough to recognise, too little to flood a console.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};

    use super::*;

    fn key() -> SecretKey {
        SecretKey::from_seed([5; 32])
    }

    fn stop() -> Vec<u8> {
        let node = PublicKey([1; 32]);
        format!(r#"{{"node":"{node}","name":"shop","version":1,"action":"stop"}}"#).into_bytes()
    }

    #[test]
    fn the_encoding_is_the_one_of_the_protocols_example() {
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(
            encoded,
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn what_was_sealed_opens_through_json() {
        let json = Envelope::seal(&key(), PAYLOAD_TYPE, &stop()).to_json();
        let signed = Envelope::parse(&json)
            .expect("an envelope")
            .open_statement(|_| true)
            .expect("opens");
        assert_eq!((signed.signer, signed.payload), (key().public(), stop()));
        assert_eq!(signed.statement.name.as_str(), "shop");
    }

    #[test]
    fn a_claim_is_never_read_as_a_statement_nor_a_statement_as_a_claim() {
        let claim = Claim {
            nodes: vec![types::claim::NodeClaim {
                node: PublicKey([1; 32]),
                challenge: types::Digest([2; 32]),
                disks: vec![types::claim::DiskClaim {
                    serial: "A".to_owned(),
                    content: types::Digest([3; 32]),
                    held: "swap space".to_owned(),
                    replaces: None,
                }],
                reboot: false,
            }],
        };
        let sealed = Envelope::seal_claim(&key(), &claim).expect("sealed");
        assert_eq!(sealed.open_claim(|_| true).expect("a claim"), claim);
        assert!(matches!(
            sealed.open_claim(|_| false),
            Err(EnvelopeError::UnknownKey(_))
        ));
        assert!(matches!(
            sealed.open_statement(|_| true),
            Err(EnvelopeError::PayloadType { .. })
        ));
        let statement = Envelope::seal(&key(), PAYLOAD_TYPE, &stop());
        assert!(matches!(
            statement.open_claim(|_| true),
            Err(EnvelopeError::PayloadType { .. })
        ));
        let none = Claim { nodes: Vec::new() };
        assert!(Envelope::seal_claim(&key(), &none).is_err());
    }

    #[test]
    fn a_wish_to_destroy_is_never_read_as_a_claim_nor_a_receipt_as_a_wish() {
        let (node, challenge) = (PublicKey([1; 32]), types::Digest([2; 32]));
        let wish = Retirement {
            node,
            challenge,
            disks: vec!["A".to_owned()],
        };
        let sealed = Envelope::seal_retirement(&key(), &wish).expect("sealed");
        assert_eq!(sealed.open_retirement(|_| true).expect("a wish"), wish);
        assert!(sealed.open_claim(|_| true).is_err() && sealed.open_receipt(|_| true).is_err());
        assert!(matches!(
            sealed.open_retirement(|_| false),
            Err(EnvelopeError::UnknownKey(_))
        ));
        let receipt = Receipt {
            node,
            challenge,
            time_ms: 1,
            synchronised: false,
            disks: Vec::new(),
            remaining: Vec::new(),
        };
        let sealed = Envelope::seal_receipt(&key(), &receipt).expect("sealed");
        assert_eq!(sealed.open_receipt(|_| true).expect("a receipt"), receipt);
        assert!(sealed.open_retirement(|_| true).is_err());
        let none = Retirement {
            disks: Vec::new(),
            ..wish
        };
        assert!(Envelope::seal_retirement(&key(), &none).is_err());
    }

    proptest! {
        #[test]
        fn no_change_of_an_envelope_makes_it_say_something_else(at: prop::sample::Index, byte in any::<u8>()) {
            let mut json = Envelope::seal(&key(), PAYLOAD_TYPE, &stop()).to_json();
            let at = at.index(json.len());
            json[at] = byte;
            if let Ok((signer, payload)) = Envelope::parse(&json).and_then(|e| e.verify(|_| true)) {
                // The other alphabet of base64, or a blank: the same said in other words.
                assert_eq!((signer, payload), (key().public(), stop()));
            }
        }

        #[test]
        fn any_bytes_are_no_envelope_that_opens(json: Vec<u8>, payload: Vec<u8>) {
            let trusts_all = |e: Envelope| e.open_statement(|_| true);
            assert!(Envelope::parse(&json).and_then(trusts_all).is_err());
            let sealed = Envelope::seal(&key(), PAYLOAD_TYPE, &payload);
            assert_eq!(sealed.verify(|_| true).expect("it was signed").1, payload);
        }
    }

    #[test]
    fn a_changed_payload_type_or_payload_is_a_bad_signature() {
        let good = Envelope::seal(&key(), PAYLOAD_TYPE, &stop());
        let payload = STANDARD.encode(
            String::from_utf8(stop())
                .expect("text")
                .replace("shop", "shoe"),
        );
        for bad in [
            Envelope {
                payload,
                ..good.clone()
            },
            Envelope {
                payload_type: "application/json".to_owned(),
                ..good.clone()
            },
        ] {
            let error = bad.verify(|_| panic!("trust is asked of a verified signer only"));
            assert!(matches!(error, Err(EnvelopeError::BadSignature)));
        }
    }

    #[test]
    fn a_stranger_is_named() {
        let error = Envelope::seal(&key(), PAYLOAD_TYPE, &stop())
            .verify(|_| false)
            .expect_err("a stranger");
        assert_eq!(error.code(), RefusalCode::UnknownKey);
        assert!(error.to_string().contains(&key().public().to_string()));
    }

    #[test]
    fn each_malformed_envelope_says_what_is_wrong() {
        let good = Envelope::seal(&key(), PAYLOAD_TYPE, &stop());
        let twice = vec![good.signatures[0].clone(), good.signatures[0].clone()];
        let signature = |keyid: &str, sig: &str| {
            vec![EnvelopeSignature {
                keyid: keyid.to_owned(),
                sig: sig.to_owned(),
            }]
        };
        let keyid = good.signatures[0].keyid.clone();
        for (bad, says) in [
            (
                Envelope {
                    signatures: vec![],
                    ..good.clone()
                },
                "this one has 0",
            ),
            (
                Envelope {
                    signatures: twice,
                    ..good.clone()
                },
                "this one has 2",
            ),
            (
                Envelope {
                    payload: "?".to_owned(),
                    ..good.clone()
                },
                "payload is not base64",
            ),
            (
                Envelope {
                    signatures: signature(&keyid, "AAAA"),
                    ..good.clone()
                },
                "signature is not base64",
            ),
            (
                Envelope {
                    signatures: signature("me", "AAAA"),
                    ..good.clone()
                },
                "keyid \"me\"",
            ),
            (
                Envelope::seal(&key(), "text/plain", &stop()),
                "payload type \"text/plain\"",
            ),
            (
                Envelope::seal(&key(), PAYLOAD_TYPE, b"{}"),
                "cannot be read: missing field",
            ),
            (
                Envelope::seal(
                    &key(),
                    PAYLOAD_TYPE,
                    &String::from_utf8(stop())
                        .expect("text")
                        .replace(":1,", ":0,")
                        .into_bytes(),
                ),
                "first version",
            ),
        ] {
            let error = bad.open_statement(|_| true).expect_err(says);
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.code(), RefusalCode::Malformed);
        }
    }

    #[test]
    fn unknown_fields_and_oversize_are_refused() {
        let json = String::from_utf8(Envelope::seal(&key(), PAYLOAD_TYPE, &stop()).to_json())
            .expect("text");
        let error = Envelope::parse(json.replacen('{', r#"{"colour":"red","#, 1).as_bytes());
        assert!(
            error
                .expect_err("an unknown field")
                .to_string()
                .contains("colour")
        );
        let error = Envelope::parse(&vec![b' '; ENVELOPE_MAX + 1]).expect_err("too large");
        assert_eq!(error.code(), RefusalCode::TooLarge);
    }

    #[test]
    fn the_url_safe_alphabet_is_read_too() {
        let good = Envelope::seal(&key(), PAYLOAD_TYPE, &[0xfb, 0xff, 0xfe]);
        assert_eq!(good.payload, "+//+");
        let other = Envelope {
            payload: "-__-".to_owned(),
            ..good
        };
        assert_eq!(
            other.verify(|_| true).expect("the same bytes").1,
            [0xfb, 0xff, 0xfe]
        );
    }
}
