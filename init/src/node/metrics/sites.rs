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
        true => text(&[requests, up]),
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
            ..SiteStatus::default()
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
        assert_eq!(found, [0.0, 7.0, 0.0, 0.0, 2.0, 1.0, 0.0]);
    }
}
