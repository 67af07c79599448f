//! What is a proxy, who is asked without it, and what of it is ever shown.

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::*;

fn proxy(text: &str) -> Proxy {
    text.parse().expect("a proxy")
}

fn egress(except: &[&str]) -> Egress {
    let except = exceptions(except).expect("exceptions");
    Egress::By(proxy("http://proxy.example:3128").except(except))
}

fn is_direct(egress: &Egress, host: &str) -> bool {
    egress.way(host) == Way::Direct
}

#[test]
fn a_proxy_has_a_host_a_port_and_perhaps_a_login() {
    let plain = proxy("http://Proxy.Example:3128/");
    assert_eq!(
        (plain.at().as_str(), plain.login()),
        ("proxy.example:3128", None)
    );
    let login = proxy("http://node:p%40ss%3Aw%C3%A4rd@[2001:db8::9]:8080");
    assert_eq!(login.at(), "[2001:db8::9]:8080");
    let own = login.login().expect("a login");
    assert_eq!((own.user(), own.password()), ("node", "p@ss:wärd"));
    let empty = proxy("http://node:@192.0.2.1:1");
    assert_eq!(empty.login().map(Login::password), Some(""));
}

#[test]
fn what_is_no_host_no_port_or_could_begin_another_line_is_refused() {
    for (bad, expected) in [
        ("proxy.example:3128", ProxyError::Form),
        ("https://proxy.example:3128", ProxyError::Form),
        ("http://proxy.example", ProxyError::Port),
        ("http://proxy.example:0", ProxyError::Port),
        ("http://proxy.example:+80", ProxyError::Port),
        ("http://proxy.example:65536", ProxyError::Port),
        ("http://:3128", ProxyError::Host),
        ("http://proxy example:3128", ProxyError::Host),
        ("http://proxy.example\r\nHost: x:3128", ProxyError::Host),
        ("http://proxy.example/path:3128", ProxyError::Host),
        ("http://proxy.example?q:3128", ProxyError::Host),
        ("http://proxy..example:3128", ProxyError::Host),
        ("http://127.1:3128", ProxyError::Host),
        ("http://proxy.0x7f:3128", ProxyError::Host),
        ("http://2001:db8::9:3128", ProxyError::Host),
        ("http://[fe80::1%eth0]:3128", ProxyError::Host),
        ("http://node@proxy.example:3128", ProxyError::Login),
        ("http://:secret@proxy.example:3128", ProxyError::Login),
        ("http://a:b@c:d@proxy.example:3128", ProxyError::Login),
        ("http://a/b:c@proxy.example:3128", ProxyError::Login),
        ("http://a%3Ab:c@proxy.example:3128", ProxyError::Login),
        ("http://a:%0d%0aX@proxy.example:3128", ProxyError::Login),
        ("http://a:%0@proxy.example:3128", ProxyError::Login),
        ("http://a:%zz@proxy.example:3128", ProxyError::Login),
        ("http://a:%ff@proxy.example:3128", ProxyError::Login),
    ] {
        assert_eq!(bad.parse::<Proxy>(), Err(expected), "{bad}");
    }
    let long = format!("http://a:{}@proxy.example:3128", "x".repeat(LOGIN_MAX + 1));
    assert_eq!(long.parse::<Proxy>(), Err(ProxyError::Login));
    for near in [
        "127.0.0.1",
        "localhost",
        "[::ffff:127.0.0.1]",
        "[fe80::1]",
        "0.0.0.0",
    ] {
        assert!(proxy(&format!("http://{near}:3128")).is_near(), "{near}");
    }
    assert!(!proxy("http://proxy.example:3128").is_near());
}

#[test]
fn exceptions_are_names_domains_and_prefixes_and_bind_nobody_else() {
    let egress = egress(&["store.example.org", ".lan", "192.0.2.0/24", "2001:db8::7"]);
    for host in [
        "store.example.org",
        "STORE.example.org.",
        "lan",
        "a.b.lan",
        "192.0.2.200",
        "[2001:db8::7]",
        "[::ffff:192.0.2.7]",
    ] {
        assert!(is_direct(&egress, host), "{host}");
    }
    for host in [
        "example.org",
        "x.store.example.org",
        "store.example.org.evil.test",
        "plan",
        "198.51.100.7",
        "[2001:db8::8]",
    ] {
        assert!(!is_direct(&egress, host), "{host}");
    }
    let many = vec!["a"; EXCEPT_MAX + 1];
    assert_eq!(exceptions(&many), Err(ProxyError::Many));
    for bad in [
        "",
        ".",
        "192.0.2.7/24",
        "a b",
        "http://a",
        "a:80",
        "127.1",
        "*.lan",
    ] {
        assert_eq!(bad.parse::<Except>(), Err(ProxyError::Except), "{bad}");
    }
}

#[test]
fn the_node_itself_its_links_and_its_tenants_are_never_asked_by_way_of_the_proxy() {
    for egress in [egress(&[]), Egress::Unclear] {
        for host in [
            "localhost",
            "a.localhost",
            "127.0.0.53",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "169.254.1.1",
            "[fe80::1]",
            "10.128.0.2",
            "10.255.255.254",
            "172.16.0.2",
            "172.31.255.254",
        ] {
            assert!(is_direct(&egress, host), "{host}");
        }
        for host in [
            "10.127.0.2",
            "172.32.0.1",
            "172.15.0.1",
            "localhost.example",
            "[2001:db8::1]",
        ] {
            assert!(!is_direct(&egress, host), "{host}");
        }
    }
    assert_eq!(Egress::Unclear.way("store.example"), Way::Unclear);
}

#[test]
fn one_process_tells_another_what_was_written_and_nothing_else_shows_the_password() {
    let secret = proxy("http://no%2Fde:s%25c%3Aret@proxy.example:3128");
    let whole = Egress::By(secret.except(exceptions(&[".lan"]).expect("one")));
    let json = serde_json::to_string(&whole).expect("JSON");
    assert_eq!(
        serde_json::from_str::<Egress>(&json).ok(),
        Some(whole.clone())
    );
    let shown = format!("{whole:?}");
    assert!(
        !shown.contains("ret") && shown.contains("proxy.example:3128"),
        "{shown}"
    );
    // Nobody but the node's own processes writes this; a host that is none is none here too.
    let forged = json.replace("proxy.example", "a b");
    assert!(serde_json::from_str::<Egress>(&forged).is_err());
}

#[test]
fn no_word_of_options_shows_a_password_be_it_misspelt_or_cut_in_two() {
    for (word, shown) in [
        (
            "sifr.proxy=http://u:secret@proxy.example:3128",
            "sifr.proxy=http://…@proxy.example:3128",
        ),
        (
            "sifr.proxy=http://proxy.example:3128",
            "sifr.proxy=http://proxy.example:3128",
        ),
        ("sifr.proxy=off", "sifr.proxy=off"),
        ("sifr.proxy=u:secret", "sifr.proxy=…"),
        ("sifr.proxy=http://u:secret", "sifr.proxy=…"),
        (
            "sifr.prxy=http://u:secret@proxy.example:3128",
            "sifr.prxy=…",
        ),
        ("sifr.prxy=u:secret@proxy.example:3128", "sifr.prxy=…"),
        ("http://u:secret@proxy.example:3128", "…"),
        ("secret@proxy.example:3128", "…"),
        ("//u:secret=x", "…"),
        ("sifr.proxy.except=.lan", "sifr.proxy.except=.lan"),
        (
            "sifr.net.eth0.address=192.0.2.7/24",
            "sifr.net.eth0.address=192.0.2.7/24",
        ),
    ] {
        assert_eq!(masked(word), shown, "{word}");
    }
}

proptest! {
    #[test]
    fn whatever_is_read_is_one_line_and_reads_back(text in "http://([ -~]{0,20}@)?[ -~]{0,24}:[0-9]{1,5}") {
        if let Ok(proxy) = text.parse::<Proxy>() {
            prop_assert!(proxy.at().bytes().all(|b| b.is_ascii_graphic() && b != b'@' && b != b'/'));
            let json = serde_json::to_string(&Egress::By(proxy.clone())).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<Egress>(&json).ok(), Some(Egress::By(proxy)));
        }
    }

    #[test]
    fn a_login_of_any_characters_that_is_read_has_none_that_ends_a_line(text: String) {
        if let Ok(login) = text.parse::<Login>() {
            let both = [login.user(), login.password()].concat();
            prop_assert!(!both.chars().any(char::is_control) && !login.user().contains(':'));
        }
    }

    #[test]
    fn a_password_is_never_shown(user in "[a-z]{1,5}", password in "[A-Z0-9]{6,20}", host in "[a-z .:/@=]{0,12}", key in "(sifr[.])?[a-z.]{0,9}") {
        for word in [
            format!("sifr.proxy=http://{user}:{password}@{host}"),
            format!("sifr.proxy={user}:{password}@{host}"),
            format!("{key}=http://{user}:{password}@{host}"),
            format!("{key}http://{user}:{password}@{host}"),
        ] {
            prop_assert!(!masked(&word).contains(&password), "{word}: {}", masked(&word));
        }
    }

    #[test]
    fn every_host_has_one_way(host: String, near in any::<bool>()) {
        let egress = if near { Egress::Direct } else { egress(&[".lan"]) };
        let way = egress.way(&host);
        prop_assert_eq!(way, egress.way(&host));
    }
}
