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
        r#""shop.example.org":{"tls":{"acme":{}},"routes":[{"to":["web:80"]}]}"#,
        r#""shop.example.org":{"tls":{"acme":{"contact":"ops+acme@example.org"}},"routes":[{"to":["web:80"]}]}"#,
        r#""shop.test":{"tls":{"acme":{"directory":"https://[fd00::1]:14000/dir"}},"routes":[{"to":["web:80"]}]}"#,
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
fn what_no_authority_can_be_asked_for_is_refused_and_the_place_named() {
    let pem = "-----BEGIN CERTIFICATE-----";
    let long = "a".repeat(600);
    for (host, acme, says) in [
        ("shop", String::new(), "no public authority"),
        ("shop.test", String::new(), "no public authority"),
        ("shop.home.arpa", String::new(), "no public authority"),
        ("*.shop.org", String::new(), "no host name"),
        (
            "a.org",
            r#""directory":"http://a.org/dir""#.to_owned(),
            "with https",
        ),
        (
            "a.org",
            r#""directory":"https:///dir""#.to_owned(),
            "no directory",
        ),
        (
            "a.org",
            r#""directory":"https://me:x@a.org/""#.to_owned(),
            "no directory",
        ),
        (
            "a.org",
            r#""directory":"https://a.org/a b""#.to_owned(),
            "no directory",
        ),
        (
            "a.org",
            format!(r#""directory":"https://a.org/{long}""#),
            "no directory",
        ),
        (
            "a.org",
            r#""contact":"mailto:a@b.org""#.to_owned(),
            "no address of mail",
        ),
        (
            "a.org",
            r#""contact":"a@b""#.to_owned(),
            "no address of mail",
        ),
        (
            "a.org",
            r#""contact":"a,c@b.org""#.to_owned(),
            "no address of mail",
        ),
        (
            "a.org",
            format!(r#""contact":"{long}@b.org""#),
            "no address of mail",
        ),
        ("a.org", r#""ca":"\u0001""#.to_owned(), "PEM form"),
        (
            "a.org",
            format!(r#""ca":"{pem}{}""#, long.repeat(40)),
            "PEM form",
        ),
        ("a.org", r#""terms":true"#.to_owned(), "unknown field"),
    ] {
        let site =
            format!(r#""{host}":{{"tls":{{"acme":{{{acme}}}}},"routes":[{{"to":["web:80"]}}]}}"#);
        let error = deployment(&site, "").expect_err(&site);
        assert!(error.contains(says), "{site}: {error}");
    }
}

#[test]
fn who_orders_where_everybody_does_says_nothing_of_it_in_the_statement() {
    let written = serde_json::to_string(&Tls::Acme(Acme::default())).expect("text");
    assert_eq!(written, r#"{"acme":{}}"#);
    let read: Tls = serde_json::from_str(&written).expect("it is one");
    assert_eq!(read, Tls::Acme(Acme::default()));
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
