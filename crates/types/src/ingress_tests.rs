//! What of an ingress is refused without a node, and that every refusal says why.

use proptest::prelude::*;

use super::*;

fn deployment(ingress: &str, machine: &str) -> Result<(), String> {
    let digest = crate::Digest([2; 32]);
    let json = format!(
        r#"{{"ingress":{{{ingress}}},"workloads":{{
            "web":{{"machine":{{"image":{{"flist":"{digest}"}}{machine}}}}},
            "db":{{"machine":{{"image":{{"flist":"{digest}"}},"networks":[{{"network":"back"}}]}}}},
            "back":{{"network":{{"internal":true}}}}}}}}"#
    );
    let deployment: Deployment = serde_json::from_str(&json).map_err(|e| e.to_string())?;
    deployment.check().map_err(|e| e.to_string())
}

#[test]
fn what_can_be_served_is_taken() {
    for site in [
        r#""shop.example.org":{"routes":[{"to":["web:80"]}]}"#,
        r#""a.b":{"routes":[{"path":"/api","to":["web:80","web:81"]},{"to":["web:82"]}],"health":{"path":"/up"}}"#,
        r#""a.b":{"tls":"passthrough","routes":[{"to":["web:443"]}],"health":{"interval_s":30}}"#,
        r#""a.b":{"tls":{"sealed":{"certificate":"c","key":"k"}},"routes":[{"to":["web:80"]}]}"#,
    ] {
        deployment(site, "").expect(site);
    }
}

#[test]
fn what_can_not_be_served_is_refused_and_the_place_named() {
    let to_web = r#""routes":[{"to":["web:80"]}]"#;
    for (site, says) in [
        (format!(r#""Shop.Example":{{{to_web}}}"#), "no host name"),
        (format!(r#""10.0.0.1":{{{to_web}}}"#), "no host name"),
        (format!(r#""a.b:80":{{{to_web}}}"#), "no host name"),
        (r#""a.b":{"routes":[]}"#.to_owned(), "0 routes"),
        (r#""a.b":{"routes":[{"to":[]}]}"#.to_owned(), "0 back ends"),
        (
            r#""a.b":{"routes":[{"to":["web"]}]}"#.to_owned(),
            "no back end",
        ),
        (
            r#""a.b":{"routes":[{"to":["web:0"]}]}"#.to_owned(),
            "no back end",
        ),
        (
            r#""a.b":{"routes":[{"to":["wep:1"]}]}"#.to_owned(),
            "wep:1: there is no machine",
        ),
        (
            r#""a.b":{"routes":[{"to":["db:1"]}]}"#.to_owned(),
            "internal",
        ),
        (
            r#""a.b":{"routes":[{"path":"api","to":["web:1"]}]}"#.to_owned(),
            "begin it with /",
        ),
        (
            r#""a.b":{"routes":[{"to":["web:1"]},{"path":"/","to":["web:2"]}]}"#.to_owned(),
            "stands there twice",
        ),
        (
            format!(r#""a.b":{{"tls":"passthrough",{to_web},"health":{{"path":"/"}}}}"#),
            "passed through",
        ),
        (
            r#""a.b":{"tls":"passthrough","routes":[{"path":"/x","to":["web:1"]}]}"#.to_owned(),
            "passed through",
        ),
        (
            format!(r#""a.b":{{{to_web},"health":{{"interval_s":0}}}}"#),
            "interval_s is 0",
        ),
        (
            format!(r#""a.b":{{"tls":{{"sealed":{{"certificate":"","key":"k"}}}},{to_web}}}"#),
            "empty, too long",
        ),
        (
            format!(
                r#""a.b":{{"tls":{{"sealed":{{"certificate":"\u0001","key":"k"}}}},{to_web}}}"#
            ),
            "no text of printable ASCII",
        ),
        (format!(r#""a.b":{{{to_web},"color":1}}"#), "unknown field"),
    ] {
        let error = deployment(&site, "").expect_err(&site);
        assert!(error.contains(says), "{site}: {error}");
    }
    let site = format!(r#""a.b":{{{to_web}}}"#);
    let published = r#","ports":[{"node":80,"machine":80}]"#;
    let error = deployment(&site, published).expect_err("80 is ingress's");
    assert!(error.contains("web publishes TCP port 80"), "{error}");
    deployment(&site, r#","ports":[{"node":443,"machine":80}]"#).expect("nothing is served at 443");
}

#[test]
fn a_client_asks_in_any_case_with_a_port_and_with_the_roots_dot() {
    let host = "shop.example.org".parse().ok();
    for asked in [
        "shop.example.org",
        "Shop.EXAMPLE.org:443",
        "shop.example.org.",
        "shop.example.org.:8",
    ] {
        assert_eq!(Host::asked(asked), host, "{asked}");
    }
    for asked in [
        "",
        "[::1]",
        "10.0.0.1:80",
        "a b",
        "user@shop.example.org",
        "shop.example.org:http",
        "é.org",
    ] {
        assert_eq!(Host::asked(asked), None, "{asked}");
    }
}

proptest! {
    #[test]
    fn whatever_a_client_asks_for_is_a_name_that_can_be_written_or_none(asked in ".{0,300}") {
        if let Some(host) = Host::asked(&asked) {
            prop_assert_eq!(host.as_str().parse(), Ok(host.clone()));
            prop_assert_eq!(Host::asked(host.as_str()), Some(host));
        }
    }
}
