//! Networks in the deployment file, and which of them a machine is on.
//!
//! Owns: the sugar: a network's name alone for a card, nothing for a network that asks for nothing.
//! Refuses: judging what they say: `types::network` does.

use serde_json::{Map, Value, json};
use types::Name;
use types::network::Network;

use crate::fleet::Fleet;
use crate::spec::{SpecError, at, list, object};

/// The fields of a network, if this is one.
pub(crate) fn network(
    name: &Name,
    place: &str,
    value: &Value,
    fleet: &mut Fleet,
) -> Option<Result<Network, SpecError>> {
    let inner = value.as_object().filter(|fields| fields.len() == 1)?;
    let inner = match inner.get("network")? {
        Value::Null => Value::Object(Map::new()),
        inner => inner.clone(),
    };
    Some(read(name, &format!("{place}.network"), inner, fleet))
}

fn read(name: &Name, place: &str, value: Value, fleet: &mut Fleet) -> Result<Network, SpecError> {
    let mut fields = object(place, value)?;
    fleet.take_nodes(name, place, &mut fields)?;
    serde_json::from_value(Value::Object(fields)).map_err(|error| at(place, &error.to_string()))
}

/// The order says which is the first: a mapping, as Compose has it, has none.
pub(crate) fn cards(place: &str, value: Value) -> Result<Value, SpecError> {
    list(place, value, "front", |text| Ok(json!({ "network": text })))
}

#[cfg(test)]
mod tests {
    use types::{Digest, Name};

    use crate::spec;

    fn read(yaml: &str) -> Result<spec::Draft, String> {
        let mut resolve = |_: &str| Ok(Digest([0xaa; 32]));
        spec::parse(yaml, &mut resolve).map_err(|error| error.to_string())
    }

    #[test]
    fn networks_are_read_as_people_write_them() {
        let draft = read(
            r#"
            name: shop
            workloads:
              front: {network: {subnet: 10.128.7.0/24}}
              back: {network: {internal: true}}
              side: {network: }
              web: {image: x, ports: ["53/udp"], networks: [{network: front, address: 10.128.7.9}, back, default]}
            "#,
        )
        .expect("a good file");
        let deployment = draft.deployment;
        assert_eq!(deployment.networks().count(), 3);
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let back = deployment.network(&name("back")).expect("a network");
        assert!(back.internal && back.subnet.is_none());
        let (_, web) = deployment.machines().next().expect("a machine");
        let on: Vec<_> = web.networks.iter().map(|c| c.network.as_str()).collect();
        assert_eq!(on, ["front", "back", "default"]);
        assert_eq!(web.networks[0].address, Some([10, 128, 7, 9].into()));
        assert_eq!(web.ports[0].to_string(), "53:53/udp");
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        let with = |networks: &str| {
            format!(
                "workloads: {{back: {{network: {{}}}}, db: {{image: x, networks: {networks}}}}}"
            )
        };
        for (yaml, says) in [
            (with("back"), "workloads.db.networks: write a list"),
            (with("{back: }"), "workloads.db.networks: write a list"),
            (with("[front]"), "which is no network of this deployment"),
            (with("[Front]"), "workloads.db: name \"Front\""),
            (
                "workloads: {back: {network: {subnet: 10.1.0.0/24}}}".to_owned(),
                "is no subnet here",
            ),
            (
                "workloads: {back: {network: {driver: bridge}}}".to_owned(),
                "workloads.back.network: unknown field `driver`",
            ),
        ] {
            let error = read(&yaml).expect_err(&yaml);
            assert!(
                error.contains(says),
                "{yaml:?} gives {error:?}, not {says:?}"
            );
        }
    }
}
