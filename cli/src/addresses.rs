//! Pools of addresses in the deployment file, and what a machine asks of them.
//!
//! Owns: the sugar: a pool's name alone for an address, `443`, `53/udp` and `icmp` for what it lets in.
//! Refuses: judging what they say: `types::address` does.

use serde_json::{Map, Value, json};
use types::address::Pool;

use crate::spec::{SpecError, at, list, object};

/// The fields of a pool, if this is one.
pub(crate) fn pool(place: &str, fields: &Map<String, Value>) -> Option<Result<Pool, SpecError>> {
    let inner = fields.get("pool").filter(|_| fields.len() == 1)?;
    let inner = serde_json::from_value(inner.clone());
    Some(inner.map_err(|error| at(&format!("{place}.pool"), &error.to_string())))
}

pub(crate) fn addresses(place: &str, value: Value) -> Result<Value, SpecError> {
    let value = list(place, value, "lan", |text| Ok(json!({ "pool": text })))?;
    let Value::Array(entries) = value else {
        return Ok(value);
    };
    let entry = |(index, entry): (usize, Value)| {
        let place = format!("{place}[{index}]");
        let mut fields = object(&place, entry)?;
        if let Some(allow) = fields.remove("allow") {
            let allow = list(&format!("{place}.allow"), allow, "443", permit)?;
            fields.insert("allow".to_owned(), allow);
        }
        Ok(Value::Object(fields))
    };
    let entries = entries.into_iter().enumerate().map(entry);
    entries.collect::<Result<_, _>>().map(Value::Array)
}

fn permit(text: &str) -> Result<Value, String> {
    let port = |text: &str| {
        let port: Option<u16> = text.parse().ok().filter(|port| *port != 0);
        port.ok_or_else(|| format!("{text:?} is neither a port, such as 443 or 53/udp, nor icmp"))
    };
    match text.split_once('/') {
        None if text == "icmp" => Ok(json!({ "icmp": true })),
        None => Ok(json!({ "tcp": port(text)? })),
        Some((number, "tcp")) => Ok(json!({ "tcp": port(number)? })),
        Some((number, "udp")) => Ok(json!({ "udp": port(number)? })),
        Some(_) => port(text).map(|_| Value::Null),
    }
}

#[cfg(test)]
mod tests {
    use types::address::{Allow, Traffic};
    use types::deployment::Protocol;
    use types::{Digest, Name};

    use crate::spec;

    fn read(yaml: &str) -> Result<spec::Draft, String> {
        let mut resolve = |_: &str| Ok(Digest([0xaa; 32]));
        spec::parse(yaml, &mut resolve).map_err(|error| error.to_string())
    }

    #[test]
    fn pools_and_addresses_are_read_as_people_write_them() {
        let draft = read(
            r#"
            name: shop
            workloads:
              lan: {pool: {kind: lan, range: 192.0.2.200-192.0.2.219, for: {shop: 2}}}
              web: {image: x, addresses: [{pool: lan, allow: [443, 53/udp, icmp, {tcp: 22, from: 203.0.113.0/24}]}]}
              db: {image: x, addresses: [lan]}
            "#,
        );
        let deployment = draft.expect("a file").deployment;
        assert_eq!(deployment.pools().count(), 1);
        let machine = |name: &str| {
            let name: Name = name.parse().expect("a name");
            let mut all = deployment.machines();
            let found = all.find(|(known, _)| **known == name);
            found.expect("a machine").1.addresses.clone()
        };
        let all = |what| Allow { what, from: None };
        let from = "203.0.113.0/24".parse().ok();
        let wanted = [
            all(Traffic::Port(Protocol::Tcp, 443)),
            all(Traffic::Port(Protocol::Udp, 53)),
            all(Traffic::Ping),
            Allow {
                what: Traffic::Port(Protocol::Tcp, 22),
                from,
            },
        ];
        assert_eq!(machine("web")[0].allow, wanted);
        assert!(machine("db")[0].allow.is_empty());
    }

    #[test]
    fn what_is_no_address_is_told_with_its_place() {
        let with =
            |addresses: &str| format!("workloads: {{db: {{image: x, addresses: {addresses}}}}}");
        for (yaml, says) in [
            (with("lan"), "workloads.db.addresses: write a list"),
            (
                with("[{pool: lan, allow: 443}]"),
                "workloads.db.addresses[0].allow: write a list",
            ),
            (
                with("[{pool: lan, allow: [ssh]}]"),
                "workloads.db.addresses[0].allow[0]: \"ssh\" is neither",
            ),
            (with("[{pool: lan, allow: [0/udp]}]"), "is neither a port"),
            (with("[{pool: lan, allow: [53/sctp]}]"), "is neither a port"),
            (with("[{pool: lan, open: 1}]"), "unknown field"),
            (
                "workloads: {a: {pool: {kind: lan, range: x}}}".to_owned(),
                "workloads.a.pool: \"x\" is no range",
            ),
        ] {
            let error = read(&yaml).expect_err(says);
            assert!(error.contains(says), "{error} for {says}");
        }
    }
}
