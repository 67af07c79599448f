//! Chains of certificates, which people bring and authorities send.
//!
//! Owns: that whatever is read as one has an end that can be shown, and serves no name after it.

use certificates::{Chain, shown};
use types::ingress::Host;

use crate::Target;

pub(crate) const TARGETS: [Target; 1] = [Target {
    name: "certificates-chain",
    bytes_max: 4096,
    run: chain,
    seeds: chains,
}];

const NAME: &str = "shop.example";

fn chain(input: &[u8]) {
    let Ok(Ok(chain)) = std::str::from_utf8(input).map(Chain::read) else {
        return;
    };
    let host: Host = NAME.parse().expect("a host");
    assert!(!shown(chain.until_s).is_empty());
    let until = chain.until_s;
    assert!(chain.clone().serves(&host, until).is_err());
    if let Some(before) = until.checked_sub(1) {
        assert_eq!(chain.is_for(&host), chain.serves(&host, before).is_ok());
    }
}

fn chains() -> Vec<Vec<u8>> {
    let made = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        made.cert.pem()
    };
    let (one, wild) = (made(&[NAME]), made(&["*.example", "other.example"]));
    [
        one.clone(),
        format!("{wild}{one}"),
        "text before\n".to_owned() + &one,
    ]
    .map(String::into_bytes)
    .to_vec()
}
