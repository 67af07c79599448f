//! A chain of certificates in PEM form, as a person brings it or an authority gives it.
//!
//! Owns: what is read from it: its first certificate's life and names. Refuses: judging who signed it: clients do.

use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use types::ingress::{CERTIFICATE_BYTES_MAX, Host, is_pem};

/// Most certificates of a chain: the longest in use have four.
const CERTIFICATES_MAX: usize = 8;
/// Of what a reader says of bytes that it does not understand.
const SAID_MAX: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("it is not PEM of at most {CERTIFICATE_BYTES_MAX} bytes: {0}")]
    Pem(String),
    #[error("it has {0} certificates, 1 to {CERTIFICATES_MAX} are possible")]
    Count(usize),
    #[error("its first certificate cannot be read: {0}")]
    Certificate(String),
    #[error("its first certificate is not for {0}")]
    Name(Host),
    #[error("its first certificate has expired on {}", shown(*.0))]
    Expired(u64),
}

/// A chain, the first of which is for names of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    certificates: Vec<CertificateDer<'static>>,
    /// When its life begins and ends, in seconds since 1970.
    pub from_s: u64,
    pub until_s: u64,
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string().chars().take(SAID_MAX).collect()
}

impl Chain {
    pub fn read(pem: &str) -> Result<Self, ChainError> {
        if pem.len() > CERTIFICATE_BYTES_MAX || !is_pem(pem) {
            let why = "it is too long, or no text of printable ASCII";
            return Err(ChainError::Pem(why.to_owned()));
        }
        let read = CertificateDer::pem_slice_iter(pem.as_bytes());
        let certificates: Vec<CertificateDer<'static>> = read
            .collect::<Result<_, _>>()
            .map_err(|error| ChainError::Pem(said(error)))?;
        let first = match &certificates[..] {
            [first, ..] if certificates.len() <= CERTIFICATES_MAX => first,
            _ => return Err(ChainError::Count(certificates.len())),
        };
        let (from_s, until_s) = life(first)?;
        ParsedCertificate::try_from(first).map_err(|e| ChainError::Certificate(said(e)))?;
        Ok(Self {
            certificates,
            from_s,
            until_s,
        })
    }

    /// Whether a client that wants this name takes it.
    pub fn is_for(&self, host: &Host) -> bool {
        let first = self.certificates.first();
        let first = first.and_then(|first| ParsedCertificate::try_from(first).ok());
        let name = ServerName::try_from(host.as_str()).ok();
        first
            .zip(name)
            .is_some_and(|(first, name)| verify_server_name(&first, &name).is_ok())
    }

    /// A chain that can serve this name now.
    pub fn serves(self, host: &Host, now_s: u64) -> Result<Self, ChainError> {
        if !self.is_for(host) {
            return Err(ChainError::Name(host.clone()));
        }
        match self.until_s > now_s {
            true => Ok(self),
            false => Err(ChainError::Expired(self.until_s)),
        }
    }

    /// Whether this private key, in PEM form, is the first one's.
    pub fn has_key(&self, key: &str) -> bool {
        use rustls::pki_types::PrivateKeyDer;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).ok();
        let provider = rustls::crypto::ring::default_provider();
        key.is_some_and(|key| {
            rustls::sign::CertifiedKey::from_der(self.certificates.clone(), key, &provider).is_ok()
        })
    }
}

/// The first and last second of a certificate.
fn life(certificate: &CertificateDer<'_>) -> Result<(u64, u64), ChainError> {
    let (rest, read) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| ChainError::Certificate(said(error)))?;
    if !rest.is_empty() {
        let why = "bytes follow it";
        return Err(ChainError::Certificate(why.to_owned()));
    }
    let life = read.validity();
    let second = |time: &x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    Ok((second(&life.not_before), second(&life.not_after)))
}

/// A time as people read it.
pub fn shown(since_1970_s: u64) -> String {
    let second = i64::try_from(since_1970_s).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_second(second) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        Err(_) => "after the year 9999".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// A chain and its key, in PEM form.
    pub(crate) fn made(names: &[&str], from_s: i64, until_s: i64) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let after = |seconds: i64| {
            epoch + std::time::Duration::from_secs(u64::try_from(seconds).expect("after 1970"))
        };
        params.not_before = after(from_s);
        params.not_after = after(until_s);
        let signed = params.self_signed(&key).expect("signed");
        (signed.pem(), key.serialize_pem())
    }

    fn pem(der: &[u8]) -> String {
        let text = BASE64_STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    }

    fn host(name: &str) -> Host {
        name.parse().expect("a host")
    }

    #[test]
    fn a_chain_says_when_it_ends_and_for_whom_it_is() {
        let (chain, key) = made(
            &["shop.example", "*.wild.example"],
            1_700_000_000,
            1_800_000_000,
        );
        let chain = Chain::read(&chain).expect("a chain");
        assert_eq!(
            (chain.from_s, chain.until_s),
            (1_700_000_000, 1_800_000_000)
        );
        for (name, fits) in [
            ("shop.example", true),
            ("a.wild.example", true),
            ("a.b.wild.example", false),
            ("wild.example", false),
            ("other.example", false),
        ] {
            assert_eq!(chain.is_for(&host(name)), fits, "{name}");
        }
        assert!(chain.has_key(&key));
        assert!(!chain.has_key(&made(&["shop.example"], 0, 1).1));
        let at = |now| chain.clone().serves(&host("shop.example"), now);
        at(1_799_999_999).expect("its last second but one");
        let expired = at(1_800_000_000).expect_err("it has ended").to_string();
        assert!(expired.contains("2027-01-15 08:00 UTC"), "{expired}");
        let other = chain
            .serves(&host("other.example"), 0)
            .expect_err("not for it");
        assert_eq!(other, ChainError::Name(host("other.example")));
    }

    #[test]
    fn what_is_no_chain_is_refused() {
        let (chain, key) = made(&["shop.example"], 0, 1);
        for (text, says) in [
            (String::new(), "0 certificates"),
            ("x".to_owned(), "0 certificates"),
            (key, "0 certificates"),
            (chain.repeat(9), "9 certificates"),
            (format!("{chain}\u{1}"), "printable ASCII"),
            (chain.repeat(100), "too long"),
            (chain.replace("-----END CERTIFICATE-----", ""), "not PEM"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
                "cannot be read",
            ),
        ] {
            let error = Chain::read(&text).expect_err(says).to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_an_authority_sends_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), flip in 0usize..5000) {
            let der = pem(&bytes);
            let _ = Chain::read(&der);
            let mut real = made(&["shop.example"], 0, 1).0.into_bytes();
            let at = flip % (real.len() * 7);
            real[at / 7] ^= 1 << (at % 7);
            if let Ok(chain) = Chain::read(&String::from_utf8_lossy(&real)) {
                let _ = chain.is_for(&host("shop.example"));
                let _ = shown(chain.until_s);
            }
        }

        #[test]
        fn every_second_can_be_shown(second in any::<u64>()) {
            prop_assert!(!shown(second).is_empty());
        }
    }
}
