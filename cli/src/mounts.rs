//! Volumes and mounts in the deployment file.
//!
//! Owns: the sugar: mounts as `data:/path` or `data:/path:ro`, origins as `data@monday`.
//! Refuses: judging what they say: `types::volume` does.

use serde_json::{Map, Value, json};
use types::volume::Volume;

use crate::spec::{SpecError, at, list, object};

/// The fields of a volume, if this is one.
pub(crate) fn volume(place: &str, value: &Value) -> Option<Result<Volume, SpecError>> {
    let inner = value.as_object().filter(|fields| fields.len() == 1)?;
    let inner = inner.get("volume")?.clone();
    Some(read(&format!("{place}.volume"), inner))
}

fn read(place: &str, value: Value) -> Result<Volume, SpecError> {
    let mut fields = object(place, value)?;
    if !fields.get("size").is_some_and(Value::is_string) {
        let problem = "write a quantity with its unit, such as 10Gi";
        return Err(at(&format!("{place}.size"), problem));
    }
    if let Some(Value::String(text)) = fields.get("from") {
        let origin = match text.split_once('@') {
            Some((volume, snapshot)) => json!({ "volume": volume, "snapshot": snapshot }),
            None => json!({ "volume": text }),
        };
        fields.insert("from".to_owned(), origin);
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| at(place, &error.to_string()))
}

pub(crate) fn mounts(place: &str, value: Value) -> Result<Value, SpecError> {
    list(place, value, "data:/var/lib/data", |text| {
        let problem = || format!("{text:?} is not VOLUME:/path or VOLUME:/path:ro");
        mount(text).map(Value::Object).ok_or_else(problem)
    })
}

fn mount(text: &str) -> Option<Map<String, Value>> {
    let mut parts = text.split(':');
    let (volume, path) = (parts.next()?, parts.next()?);
    let read_only = match parts.next() {
        None => false,
        Some("ro") => true,
        Some(_) => return None,
    };
    let mount = json!({ "volume": volume, "path": path, "read_only": read_only });
    match (parts.next(), mount) {
        (None, Value::Object(fields)) => Some(fields),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use types::node::DiskClass;
    use types::volume::{Mount, Origin};
    use types::{Bytes, Digest, Name};

    use crate::spec;

    fn read(yaml: &str) -> Result<spec::Draft, String> {
        let mut resolve = |_: &str| Ok(Digest([0xaa; 32]));
        spec::parse(yaml, &mut resolve).map_err(|error| error.to_string())
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn volumes_and_mounts_are_read_as_people_write_them() {
        let draft = read(
            r#"
            name: shop
            remove: [old]
            destroy: [old]
            workloads:
              data: {volume: {size: 10Gi, class: hdd, limits: {operations_per_second: 500}}}
              copy: {volume: {size: 10Gi, from: data@monday}}
              db:
                image: x.flist
                class: nvme
                mounts: ["data:/var/lib/data", {volume: copy, path: /copy, read_only: true}]
              web: {image: x.flist, mounts: ["copy:/srv:ro"]}
            "#,
        )
        .expect("a good file");
        let deployment = draft.deployment;
        assert_eq!(deployment.destroy, [name("old")].into());
        let (_, copy) = deployment.volumes().next().expect("a volume");
        let from = Origin {
            volume: name("data"),
            snapshot: Some(name("monday")),
        };
        assert_eq!((copy.size, &copy.from), (Bytes::gib(10), &Some(from)));
        let classes: Vec<_> = deployment.volumes().map(|(_, v)| v.class).collect();
        assert_eq!(classes, [None, Some(DiskClass::Hdd)]);
        let (_, db) = deployment.machines().next().expect("a machine");
        assert_eq!(db.class, Some(DiskClass::Nvme));
        let (_, db) = deployment.machines().next().expect("a machine");
        let mount = |volume: &str, path: &str, read_only| Mount {
            volume: name(volume),
            path: path.to_owned(),
            read_only,
        };
        let expected = [
            mount("data", "/var/lib/data", false),
            mount("copy", "/copy", true),
        ];
        assert_eq!(db.mounts, expected);
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        let with = |mounts: &str| {
            format!(
                "workloads: {{data: {{volume: {{size: 1Gi}}}}, db: {{image: x, mounts: {mounts}}}}}"
            )
        };
        for (yaml, says) in [
            (with("data"), "workloads.db.mounts: write a list"),
            (
                with("[data]"),
                "workloads.db.mounts[0]: \"data\" is not VOLUME:/path",
            ),
            (with("['data:/a:rw']"), "workloads.db.mounts[0]"),
            (with("['other:/a']"), "no volume of this deployment"),
            (with("['data:a']"), "no place for a volume"),
            (
                "workloads: {data: {volume: {size: 5}}}".to_owned(),
                "workloads.data.volume.size: write a quantity",
            ),
            (
                "workloads: {data: {volume: {size: 1Gi, colour: red}}}".to_owned(),
                "unknown field `colour`",
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
