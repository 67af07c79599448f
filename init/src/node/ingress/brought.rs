//! Certificates that a deployment brings, those of servers and of authorities.
//!
//! Owns: refusing those that are of no use, and what is shown of the others. Refuses: keys, which stay sealed here.

use std::collections::BTreeMap;

use certificates::{Authority, Chain};
use types::deployment::{Action, Statement};
use types::ingress::{Host, Tls};
use types::status::{CertificateState, CertificateStatus, Refusal, RefusalCode};
use workload::host::PlacedSite;

/// Whether each is for its name, and has not ended by this node's clock: one that is behind refuses none.
pub(crate) fn check(statement: &Statement, now_s: u64) -> Result<(), Refusal> {
    let Action::Deploy(deployment) = &statement.action else {
        return Ok(());
    };
    for (host, site) in &deployment.ingress {
        let why = match &site.tls {
            None | Some(Tls::Passthrough) => None,
            Some(Tls::Sealed { certificate, .. }) => {
                let chain = Chain::read(certificate).and_then(|chain| chain.serves(host, now_s));
                chain.err().map(|why| format!(
                    "the certificate that it brings is of no use: {why}; bring another, or write `tls: acme`, and sign it again"
                ))
            }
            Some(Tls::Acme(acme)) => Authority::new(acme).err().map(|why| why.to_string()),
        };
        if let Some(why) = why {
            let message = format!("ingress {host}: {why}");
            return Err(refusal(message));
        }
    }
    Ok(())
}

fn refusal(message: String) -> Refusal {
    let code = RefusalCode::Malformed;
    Refusal { code, message }
}

/// Of each name that has one.
pub(super) fn statuses(sites: &BTreeMap<Host, PlacedSite>) -> BTreeMap<Host, CertificateStatus> {
    let of = |(host, placed): (&Host, &PlacedSite)| match &placed.site.tls {
        Some(Tls::Sealed { certificate, .. }) => Some((host.clone(), status(certificate))),
        Some(Tls::Passthrough | Tls::Acme(_)) | None => None,
    };
    sites.iter().filter_map(of).collect()
}

fn status(certificate: &str) -> CertificateStatus {
    let read = Chain::read(certificate);
    let error = read.as_ref().err().map(ToString::to_string);
    let until_s = read.ok().map(|chain| chain.until_s);
    CertificateStatus {
        state: match until_s {
            Some(_) => CertificateState::Valid,
            None => CertificateState::Unreadable,
        },
        brought: true,
        until_s,
        order_s: None,
        failures: 0,
        error,
    }
}

/// It ends while nothing else changes.
pub(super) fn aged(mut status: CertificateStatus, now_s: u64) -> CertificateStatus {
    if status.until_s.is_some_and(|until| until <= now_s) {
        status.state = CertificateState::Expired;
        let what = "it has expired: deploy another, or write `tls: acme`";
        status.error = Some(what.to_owned());
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For `shop.test`, from 1975 to 4096.
    fn certificate() -> String {
        let names = ["shop.test".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        made.cert.pem()
    }

    fn statement(host: &str, certificate: &str) -> Statement {
        let sealed = serde_json::json!({"certificate": certificate, "key": "k"});
        let site = serde_json::json!({"tls": {"sealed": sealed}, "routes": [{"to": ["web:80"]}]});
        let deployment = serde_json::json!({"ingress": {host: site}, "workloads": {}});
        let node = types::PublicKey([1; 32]);
        let statement = serde_json::json!({
            "node": node,
            "name": "shop",
            "version": 1,
            "action": {"deploy": deployment},
        });
        serde_json::from_value(statement).expect("a statement")
    }

    #[test]
    fn a_certificate_that_serves_nobody_is_refused_and_another_is_not() {
        let own = &certificate();
        check(&statement("shop.test", own), 1_800_000_000).expect("it is of use");
        for (host, certificate, now, says) in [
            ("other.test", own.as_str(), 0, "not for other.test"),
            ("shop.test", own, 1 << 37, "has expired on 4096-01-01"),
            ("shop.test", "none", 0, "0 certificates"),
        ] {
            let refusal = check(&statement(host, certificate), now).expect_err(says);
            assert_eq!(refusal.code, RefusalCode::Malformed);
            let message = refusal.message;
            assert!(
                message.contains(says) && message.contains(host),
                "{message}"
            );
        }
    }

    #[test]
    fn an_authority_of_its_own_must_be_one() {
        let with = |ca: &str| {
            let mut statement = statement("shop.test", &certificate());
            let Action::Deploy(deployment) = &mut statement.action else {
                unreachable!("it was made so")
            };
            let ca = Some(ca.to_owned());
            for site in deployment.ingress.values_mut() {
                site.tls = Some(Tls::Acme(types::ingress::Acme {
                    ca: ca.clone(),
                    ..Default::default()
                }));
            }
            check(&statement, 0)
        };
        with(&certificate()).expect("whatever can sign is not asked here");
        let refusal = with("ca.pem").expect_err("a path is none");
        assert!(
            refusal.message.contains("correct `ca`"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn what_is_shown_of_one_changes_when_it_ends() {
        let status = status(&certificate());
        let until = status.until_s.expect("it ends");
        assert_eq!(
            aged(status.clone(), until - 1).state,
            CertificateState::Valid
        );
        assert_eq!(aged(status, until).state, CertificateState::Expired);
        assert_eq!(super::status("none").state, CertificateState::Unreadable);
    }
}
