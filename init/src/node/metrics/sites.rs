//! The numbers of ingress, from what the API says of names.
//!
//! Owns: their families. Refuses: asking anybody.

use types::status::DeploymentStatus;

use super::super::exposition::{Family, Type, Value, text};

/// By the place in `SiteStatus::answered`.
const CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The text, empty where no deployment has names.
pub(crate) fn render(all: &[DeploymentStatus]) -> String {
    let mut requests = Family::new(
        "sifr_ingress_requests_total",
        Type::Counter,
        "Requests that were answered under a name, by the hundreds of the answer's code.",
    );
    let mut up = Family::new(
        "sifr_ingress_backend_up",
        Type::Gauge,
        "Whether the machine answered when it was last asked. Absent: it was not asked yet.",
    );
    let mut expiry = Family::new(
        "sifr_ingress_certificate_expiry_timestamp_seconds",
        Type::Gauge,
        "End of the certificate under which the node speaks TLS, in seconds since 1970. Absent: there is none.",
    );
    let mut failures = Family::new(
        "sifr_ingress_certificate_failures_total",
        Type::Counter,
        "Orders of a certificate by ACME that failed.",
    );
    let mut any = false;
    for status in all {
        for (host, site) in &status.ingress {
            any = true;
            let labels = [
                ("deployment", status.name.as_str()),
                ("name", host.as_str()),
            ];
            for (code, count) in CODES.into_iter().zip(site.answered) {
                let labels = [&labels[..], &[("code", code)]].concat();
                requests.sample(&labels, Value::Count(count));
            }
            let certificate = site.certificate.as_ref();
            if let Some(until_s) = certificate.and_then(|own| own.until_s) {
                expiry.sample(&labels, Value::Count(until_s));
            }
            if let Some(own) = certificate.filter(|own| !own.brought) {
                failures.sample(&labels, Value::Count(own.failures));
            }
            for (backend, is_up) in &site.backends {
                if let Some(is_up) = is_up {
                    let mut labels = [&labels[..], &[("backend", backend.as_str())]].concat();
                    let node = site.nodes.get(backend);
                    labels.extend(node.map(|node| ("node", node.as_str())));
                    up.sample(&labels, Value::Count(u64::from(*is_up)));
                }
            }
        }
    }
    match any {
        true => text(&[requests, up, expiry, failures]),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use types::status::SiteStatus;

    use super::super::super::exposition::tests::parse;
    use super::*;

    #[test]
    fn requests_are_counted_by_code_and_a_machine_that_nobody_asked_is_neither_up_nor_down() {
        let json =
            r#"{"name":"shop","version":1,"desired":"running","durable":true,"workloads":{}}"#;
        let mut status: DeploymentStatus = serde_json::from_str(json).expect("a status");
        assert_eq!(render(std::slice::from_ref(&status)), "");
        let site = SiteStatus {
            backends: [("a:1", Some(true)), ("b:1", Some(false)), ("c:1", None)]
                .map(|(name, up)| (name.to_owned(), up))
                .into(),
            nodes: [("b:1".to_owned(), "n2".parse().expect("a name"))].into(),
            answered: [0, 7, 0, 0, 2],
            message: None,
            certificate: Some(types::status::CertificateStatus {
                state: types::status::CertificateState::Valid,
                brought: false,
                until_s: Some(1_900_000_000),
                order_s: None,
                failures: 3,
                error: None,
            }),
        };
        status
            .ingress
            .insert("shop.example".parse().expect("a host"), site);
        let rendered = render(&[status]);
        let elsewhere = r#"name="shop.example",backend="b:1",node="n2"} 0"#;
        assert!(rendered.contains(elsewhere), "{rendered}");
        assert_eq!(rendered.matches("node=").count(), 1, "{rendered}");
        let samples = parse(&rendered);
        let found: Vec<f64> = samples.iter().map(|(.., value)| *value).collect();
        assert_eq!(
            found,
            [0.0, 7.0, 0.0, 0.0, 2.0, 1.0, 0.0, 1_900_000_000.0, 3.0]
        );
    }
}
