//! The deployment file, with what people like to write, turned into `types::deployment`.
//!
//! Owns: the sugar (ports as text, images as files, variables as lists or numbers, one machine without
//! `workloads`) and messages that name the place in the file.
//! Refuses: unknown fields, and units to be guessed. Reads no file but the one it is given: the caller
//! resolves images.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use types::deployment::{Deployment, Machine, ONLY_WORKLOAD, Workload};
use types::{Digest, Name};

use crate::fleet::Fleet;
use crate::{addresses, args, cards, mounts, sites};

/// Longest deployment file: far more than an envelope holds.
pub(crate) const FILE_MAX: u64 = 1 << 20;

/// Fields that stand beside `workloads` or beside the single machine.
const TOP_FIELDS: [&str; 6] = [
    "name",
    "accept_volatile",
    "workloads",
    "ingress",
    "remove",
    "destroy",
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("the deployment file is not YAML: {0}")]
    Yaml(String),
    #[error("{place}: {problem}")]
    At { place: String, problem: String },
    #[error("{0}")]
    Check(#[from] types::deployment::SpecError),
}

/// What a file asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Draft {
    pub(crate) name: Option<Name>,
    pub(crate) deployment: Deployment,
    /// Where it names nodes, what it says of them. Then only the parts can be checked.
    pub(crate) fleet: Fleet,
}

/// Finds the digest of an image that is named as a file; the error is for people.
pub(crate) type Resolve<'a> = &'a mut dyn FnMut(&str) -> Result<Digest, String>;

/// Reads a deployment file.
pub(crate) fn parse(yaml: &str, resolve: Resolve<'_>) -> Result<Draft, SpecError> {
    let yaml_error = |error: serde_norway::Error| SpecError::Yaml(error.to_string());
    // By way of YAML's own value, which refuses a key that stands twice.
    let document: serde_norway::Value = serde_norway::from_str(yaml).map_err(yaml_error)?;
    let document: Value = serde_norway::from_value(document).map_err(yaml_error)?;
    let mut top = object("the file", document)?;
    let name = top
        .remove("name")
        .map(|name| label("name", &name))
        .transpose()?;
    let accept_volatile = match top.remove("accept_volatile") {
        None => false,
        Some(Value::Bool(accepted)) => accepted,
        Some(_) => return Err(at("accept_volatile", "write true or false")),
    };
    let (remove, destroy) = (names(&mut top, "remove")?, names(&mut top, "destroy")?);
    let mut fleet = Fleet::default();
    let ingress = top.remove("ingress");
    let ingress = ingress.map(|value| sites::sites(value, &mut fleet));
    let ingress = ingress.transpose()?;
    let workloads = match top.remove("workloads") {
        Some(workloads) => object("workloads", workloads)?,
        None if top.contains_key("image") => Map::from_iter([(
            ONLY_WORKLOAD.to_owned(),
            Value::Object(std::mem::take(&mut top)),
        )]),
        None => {
            return Err(at(
                "workloads",
                "is missing: name at least one, with its image",
            ));
        }
    };
    if let Some(field) = top.keys().next() {
        let problem = format!("is not a field here: known are {}", TOP_FIELDS.join(", "));
        return Err(at(field, &problem));
    }
    let mut deployment = Deployment {
        accept_volatile,
        workloads: Default::default(),
        ingress: ingress.unwrap_or_default(),
        remove,
        destroy,
    };
    for (key, value) in workloads {
        let place = format!("workloads.{key}");
        let name = label(&place, &Value::String(key))?;
        let workload = workload(&name, &place, value, resolve, &mut fleet)?;
        deployment.workloads.insert(name, workload);
    }
    if fleet.is_empty() {
        deployment.check()?;
    }
    Ok(Draft {
        name,
        deployment,
        fleet,
    })
}

fn workload(
    name: &Name,
    place: &str,
    value: Value,
    resolve: Resolve<'_>,
    fleet: &mut Fleet,
) -> Result<Workload, SpecError> {
    if let Some(volume) = mounts::volume(place, &value) {
        return volume.map(Workload::Volume);
    }
    if let Some(network) = cards::network(name, place, &value, fleet) {
        return network.map(Workload::Network);
    }
    let mut fields = object(place, value)?;
    fleet.take_on(name, place, &mut fields)?;
    if let Some(pool) = addresses::pool(place, &fields) {
        return pool.map(Workload::Pool);
    }
    machine(place, Value::Object(fields), resolve).map(Workload::Machine)
}

fn names(top: &mut Map<String, Value>, field: &str) -> Result<BTreeSet<Name>, SpecError> {
    match top.remove(field) {
        None => Ok(BTreeSet::new()),
        Some(Value::Array(names)) => names.iter().map(|name| label(field, name)).collect(),
        Some(_) => Err(at(field, "write a list of names, such as [db]")),
    }
}

fn machine(place: &str, value: Value, resolve: Resolve<'_>) -> Result<Machine, SpecError> {
    let mut fields = object(place, value)?;
    // The form of the signed statement: `{machine: {…}}`.
    if fields.len() == 1
        && let Some(inner) = fields.remove("machine")
    {
        fields = object(&format!("{place}.machine"), inner)?;
    }
    let inside = |field: &str| format!("{place}.{field}");
    let given = fields
        .remove("image")
        .ok_or_else(|| at(place, "needs an image"))?;
    let store = fields.remove("store");
    fields.insert(
        "image".to_owned(),
        image(&inside("image"), given, store, resolve)?,
    );
    desugar(&mut fields, "ports", |value| ports(&inside("ports"), value))?;
    desugar(&mut fields, "mounts", |value| {
        mounts::mounts(&inside("mounts"), value)
    })?;
    desugar(&mut fields, "networks", |value| {
        cards::cards(&inside("networks"), value)
    })?;
    desugar(&mut fields, "addresses", |value| {
        addresses::addresses(&inside("addresses"), value)
    })?;
    desugar(&mut fields, "env", |value| env(&inside("env"), value))?;
    desugar(&mut fields, "restart", |value| {
        restart(&inside("restart"), &value)
    })?;
    for field in ["entrypoint", "command"] {
        desugar(&mut fields, field, |value| arguments(&inside(field), value))?;
    }
    for field in ["memory", "disk"] {
        desugar(&mut fields, field, |value| match value {
            Value::String(_) => Ok(value),
            _ => Err(at(
                &inside(field),
                "write a quantity with its unit, such as 512Mi",
            )),
        })?;
    }
    desugar(&mut fields, "user", |value| {
        Ok(scalar(&value).map_or(value, Value::String))
    })?;
    serde_json::from_value(Value::Object(fields)).map_err(|error| at(place, &error.to_string()))
}

fn desugar(
    fields: &mut Map<String, Value>,
    field: &str,
    change: impl FnOnce(Value) -> Result<Value, SpecError>,
) -> Result<(), SpecError> {
    match fields.remove(field) {
        None | Some(Value::Null) => Ok(()),
        Some(value) => {
            fields.insert(field.to_owned(), change(value)?);
            Ok(())
        }
    }
}

fn image(
    place: &str,
    given: Value,
    store: Option<Value>,
    resolve: Resolve<'_>,
) -> Result<Value, SpecError> {
    let mut fields = match given {
        Value::String(text) => Map::from_iter([("flist".to_owned(), Value::String(text))]),
        Value::Object(fields) => fields,
        _ => {
            return Err(at(
                place,
                "write an image's file or a digest such as blake3:…",
            ));
        }
    };
    if let Some(store) = store
        && fields.insert("store".to_owned(), store).is_some()
    {
        return Err(at(place, "store is given twice"));
    }
    let Some(Value::String(flist)) = fields.get("flist") else {
        return Err(at(
            place,
            "needs flist: an image's file or a digest such as blake3:…",
        ));
    };
    let digest = image_digest(flist, resolve).map_err(|problem| at(place, &problem))?;
    fields.insert("flist".to_owned(), json!(digest));
    Ok(Value::Object(fields))
}

/// A digest as it stands, or that of a .flist file.
pub(crate) fn image_digest(text: &str, resolve: Resolve<'_>) -> Result<Digest, String> {
    if text.starts_with("blake3:") {
        return text
            .parse()
            .map_err(|error: types::id::IdError| error.to_string());
    }
    resolve(text)
}

fn ports(place: &str, value: Value) -> Result<Value, SpecError> {
    list(place, value, "80:8080", |text| {
        args::port(text).map(|port| json!(port))
    })
}

/// A list whose entries may be written in short, as text; those that are not are left as they stand.
pub(crate) fn list(
    place: &str,
    value: Value,
    example: &str,
    read: impl Fn(&str) -> Result<Value, String>,
) -> Result<Value, SpecError> {
    let Value::Array(entries) = value else {
        return Err(at(place, &format!("write a list, such as [{example:?}]")));
    };
    let entry = |(index, entry): (usize, Value)| match scalar(&entry) {
        Some(text) => read(&text).map_err(|problem| at(&format!("{place}[{index}]"), &problem)),
        None => Ok(entry),
    };
    entries
        .into_iter()
        .enumerate()
        .map(entry)
        .collect::<Result<_, _>>()
        .map(Value::Array)
}

fn env(place: &str, value: Value) -> Result<Value, SpecError> {
    let text = |name: &str, value: &Value| {
        scalar(value).ok_or_else(|| at(&format!("{place}.{name}"), "write text or a number"))
    };
    let mut variables = Map::new();
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let value = text(&name, &value)?;
                variables.insert(name, Value::String(value));
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                let here = format!("{place}[{index}]");
                let entry = scalar(entry).ok_or_else(|| at(&here, "write NAME=value"))?;
                let (name, value) =
                    args::variable(&entry).map_err(|problem| at(&here, &problem))?;
                if variables.insert(name, Value::String(value)).is_some() {
                    return Err(at(&here, "this variable is given twice"));
                }
            }
        }
        _ => return Err(at(place, "write NAME: value lines or a list of NAME=value")),
    }
    Ok(Value::Object(variables))
}

fn restart(place: &str, value: &Value) -> Result<Value, SpecError> {
    let text = value
        .as_str()
        .ok_or_else(|| at(place, "write always, on-failure or never"))?;
    args::restart(text)
        .map(|policy| json!(policy))
        .map_err(|problem| at(place, &problem))
}

fn arguments(place: &str, value: Value) -> Result<Value, SpecError> {
    let Value::Array(entries) = value else {
        return Err(at(
            place,
            "write a list, such as [\"/bin/app\", \"-v\"]: there is no shell that would split text",
        ));
    };
    let entry = |(index, entry): (usize, &Value)| {
        scalar(entry)
            .map(Value::String)
            .ok_or_else(|| at(&format!("{place}[{index}]"), "write text"))
    };
    entries
        .iter()
        .enumerate()
        .map(entry)
        .collect::<Result<_, _>>()
        .map(Value::Array)
}

/// Text, and what YAML reads as a number or a truth value although text was meant.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

pub(crate) fn object(place: &str, value: Value) -> Result<Map<String, Value>, SpecError> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(at(place, "should have fields (name: value)")),
    }
}

pub(crate) fn label(place: &str, value: &Value) -> Result<Name, SpecError> {
    let text = value.as_str().ok_or_else(|| at(place, "write a name"))?;
    text.parse()
        .map_err(|error: types::id::IdError| at(place, &error.to_string()))
}

pub(crate) fn at(place: &str, problem: &str) -> SpecError {
    SpecError::At {
        place: place.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use types::Bytes;
    use types::deployment::{Port, RestartPolicy};

    use super::*;

    fn read(yaml: &str) -> Result<Draft, String> {
        let mut resolve = |path: &str| match path {
            "store/a.flist" => Ok(Digest([0xaa; 32])),
            _ => Err(format!("{path} cannot be read")),
        };
        parse(yaml, &mut resolve).map_err(|error| error.to_string())
    }

    fn only(yaml: &str) -> Machine {
        let draft = read(yaml).expect(yaml);
        let (_, machine) = draft.deployment.machines().next().expect("one machine");
        machine.clone()
    }

    #[test]
    fn what_people_write_becomes_what_is_signed() {
        let draft = read(
            r#"
            name: shop
            accept_volatile: true
            remove: [db]
            workloads:
              web:
                image: store/a.flist
                store: http://10.0.0.2:8000/
                cpus: 2
                memory: 512Mi
                disk: 2Gi
                ports: ["80:8080", 443, {node: 81, machine: 82}]
                env: {PORT: 8080, DEBUG: true, NAME: shop}
                restart: on-failure
                command: [serve, -p, 8080]
                user: 1000
                workdir: /srv
                limits:
                  disk: {operations_per_second: 500, bytes_per_second: 20Mi}
                  send: {bytes_per_second: 1Mi}
            "#,
        )
        .expect("a good file");
        assert_eq!(draft.name, Some("shop".parse().expect("a name")));
        assert!(draft.deployment.accept_volatile);
        let removed: Vec<_> = draft.deployment.remove.iter().map(Name::as_str).collect();
        assert_eq!(removed, ["db"]);
        let (name, machine) = draft.deployment.machines().next().expect("one machine");
        assert_eq!(name.as_str(), "web");
        assert_eq!(machine.image.flist, Digest([0xaa; 32]));
        assert_eq!(machine.image.store, Some("http://10.0.0.2:8000/".into()));
        assert_eq!(
            (machine.cpus, machine.memory, machine.disk),
            (2, Bytes::mib(512), Bytes::gib(2))
        );
        let ports =
            [(80, 8080), (443, 443), (81, 82)].map(|(node, machine)| Port::tcp(node, machine));
        assert_eq!(machine.ports, ports);
        let env: Vec<_> = machine
            .env
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(env, ["DEBUG=true", "NAME=shop", "PORT=8080"]);
        assert_eq!(machine.restart, RestartPolicy::OnFailure);
        assert_eq!(
            machine.command.as_deref(),
            Some(&["serve", "-p", "8080"].map(str::to_owned)[..])
        );
        assert_eq!(
            (machine.user.as_deref(), machine.workdir.as_deref()),
            (Some("1000"), Some("/srv"))
        );
        let limits = machine.limits.expect("limits");
        let disk = limits.disk.expect("a limit");
        assert_eq!(
            (disk.operations_per_second, disk.bytes_per_second),
            (Some(500), Some(Bytes::mib(20)))
        );
        let send = limits.send.expect("a limit");
        assert_eq!(
            (send.packets_per_second, send.bytes_per_second),
            (None, Some(Bytes::mib(1)))
        );
        assert_eq!(limits.receive, None);
    }

    #[test]
    fn one_machine_needs_no_workloads() {
        let draft = read("name: shop\nimage: store/a.flist\nports: [80]").expect("a good file");
        assert_eq!(
            draft.deployment.workloads.keys().next().map(Name::as_str),
            Some(ONLY_WORKLOAD)
        );
    }

    #[test]
    fn the_signed_form_and_digests_are_read_too() {
        let digest = Digest([0xbb; 32]);
        let machine = only(&format!(
            "workloads: {{web: {{machine: {{image: {{flist: '{digest}'}}}}}}}}"
        ));
        assert_eq!(machine.image.flist, digest);
        assert_eq!(only(&format!("image: {digest}")).image.flist, digest);
        assert_eq!(
            only("image: store/a.flist\nenv: [A=b=c, B=]\ncommand:").env["A"],
            "b=c"
        );
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        let image = "image: store/a.flist";
        for (yaml, says) in [
            ("", "the file: should have fields"),
            ("a: [", "is not YAML"),
            ("name: shop", "workloads: is missing"),
            ("image: store/a.flist\nremove: db", "remove: write a list"),
            ("workloads: {}", "1 to 32 workloads, this one has 0"),
            (
                "workloads: {Web: {image: store/a.flist}}",
                "workloads.Web: name \"Web\" is not a DNS label",
            ),
            ("workloads: {web: }", "workloads.web: should have fields"),
            (
                "workloads: {web: {cpus: 1}}",
                "workloads.web: needs an image",
            ),
            (
                "workloads: {web: {image: store/a.flist, colour: red}}",
                "workloads.web: unknown field `colour`",
            ),
            (
                "workloads: {web: {image: store/a.flist}}\ncolour: red",
                "colour: is not a field here",
            ),
            ("name: 7\nimage: store/a.flist", "name: write a name"),
            (
                "accept_volatile: maybe\nimage: store/a.flist",
                "accept_volatile: write true or false",
            ),
            (
                "image: shop:dev",
                "workloads.main.image: shop:dev cannot be read",
            ),
            (
                "image: store/b.flist",
                "workloads.main.image: store/b.flist cannot be read",
            ),
            (
                "image: blake3:12",
                "workloads.main.image: digest \"blake3:12\"",
            ),
            ("image: 7", "workloads.main.image: write an image's file"),
            (
                "image: {flist: store/a.flist, store: http://a}\nstore: http://b",
                "store is given twice",
            ),
            (&format!("{image}\nstore: ftp://a"), "is no URL of a store"),
            (
                &format!("{image}\nmemory: 512"),
                "workloads.main.memory: write a quantity with its unit",
            ),
            (&format!("{image}\nmemory: 1G"), "quantity \"1G\""),
            (
                &format!("{image}\nmemory: 1Mi"),
                "memory is 1Mi, allowed is 64Mi",
            ),
            (
                &format!("{image}\nports: 80"),
                "workloads.main.ports: write a list",
            ),
            (
                &format!("{image}\nports: ['80:0']"),
                "workloads.main.ports[0]: port \"80:0\"",
            ),
            (&format!("{image}\nports: [80, 80]"), "published twice"),
            (
                &format!("{image}\nenv: {{A: [1]}}"),
                "workloads.main.env.A: write text or a number",
            ),
            (
                &format!("{image}\nenv: [A]"),
                "workloads.main.env[0]: variable \"A\" is not NAME=value",
            ),
            (
                &format!("{image}\nenv: [A=1, A=2]"),
                "workloads.main.env[1]: this variable is given twice",
            ),
            (
                &format!("{image}\nrestart: often"),
                "workloads.main.restart: restart policy \"often\"",
            ),
            (
                &format!("{image}\ncommand: /bin/app -v"),
                "workloads.main.command: write a list",
            ),
            (
                &format!("{image}\nlimits: {{disk: {{bytes_per_second: 20}}}}"),
                "workloads.main: invalid type",
            ),
            (
                &format!("{image}\nlimits: {{disk: {{bytes_per_second: 1Ki}}}}"),
                "limits.disk.bytes_per_second is 1Ki, allowed is 64Ki to 1Ti",
            ),
            (
                &format!("{image}\nlimits: {{disk: {{iops: 5}}}}"),
                "unknown field `iops`",
            ),
            (
                &format!("{image}\ncpus: two"),
                "workloads.main: invalid type",
            ),
            (&format!("{image}\ncpus: 1\ncpus: 2"), "duplicate"),
        ] {
            let error = read(yaml).expect_err(yaml);
            assert!(
                error.contains(says),
                "{yaml:?} gives {error:?}, not {says:?}"
            );
        }
    }
}
