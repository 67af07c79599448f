//! Names of ingress in the deployment file, and their certificates.
//!
//! Owns: the sugar (one back end as text, a path for a health check, certificates as files), and that a private key is sealed to
//! the node before anything is signed. Refuses: judging what they say: `types::ingress` does.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use certificates::{Chain, shown};
use serde_json::{Map, Value, json};
use types::PublicKey;
use types::deployment::Deployment;
use types::ingress::{CERTIFICATE_BYTES_MAX, Host, KEY_BYTES_MAX, Site, Sites, Tls};
use types::status::{CertificateState, CertificateStatus, DeploymentStatus, SiteStatus};
use types::stores::AUTHORITY_BYTES_MAX;
use vault::sealed::{Recipient, seal};

use crate::failure::Usage;
use crate::fleet::Fleet;
use crate::screen::clean;
use crate::served;
use crate::spec::{SpecError, at, object};

/// What a private key in PEM form begins with.
const PEM: &str = "-----BEGIN ";

pub(crate) fn sites(value: Value, fleet: &mut Fleet) -> Result<Sites, SpecError> {
    let mut sites = Sites::new();
    for (host, mut value) in object("ingress", value)? {
        let place = format!("ingress.{host}");
        let on = served::take_on(&place, &mut value)?;
        let site = site(&place, value)?;
        let host: Host = host
            .parse()
            .map_err(|error: types::ingress::IngressError| at(&place, &error.to_string()))?;
        fleet.sites.extend(on.map(|on| (host.clone(), on)));
        sites.insert(host, site);
    }
    Ok(sites)
}

fn site(place: &str, value: Value) -> Result<Site, SpecError> {
    let mut fields = object(place, value)?;
    let mut routes = Vec::new();
    if let Some(paths) = fields.remove("paths") {
        for (path, to) in object(&format!("{place}.paths"), paths)? {
            let to = backends(&format!("{place}.paths.{path}"), to)?;
            routes.push(json!({"path": path, "to": to}));
        }
    }
    if let Some(to) = fields.remove("to") {
        routes.push(json!({"to": backends(&format!("{place}.to"), to)?}));
    }
    if routes.is_empty() && !fields.contains_key("routes") {
        return Err(at(
            place,
            "needs `to`: where its requests go, such as [web:8080]",
        ));
    }
    if !routes.is_empty()
        && fields
            .insert("routes".to_owned(), Value::Array(routes))
            .is_some()
    {
        return Err(at(
            place,
            "has both routes and `to` or `paths`: write one of them",
        ));
    }
    if let Some(Value::String(path)) = fields.get("health") {
        let health = json!({ "path": path });
        fields.insert("health".to_owned(), health);
    }
    if let Some(tls) = fields.remove("tls") {
        fields.insert("tls".to_owned(), self::tls(&format!("{place}.tls"), tls)?);
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| at(place, &error.to_string()))
}

/// One, or a list.
fn backends(place: &str, value: Value) -> Result<Value, SpecError> {
    match value {
        Value::String(one) => Ok(json!([one])),
        Value::Array(_) => Ok(value),
        _ => Err(at(
            place,
            "write a machine and its port, such as web:8080, or a list of them",
        )),
    }
}

fn tls(place: &str, value: Value) -> Result<Value, SpecError> {
    if value == json!("passthrough") {
        return Ok(value);
    }
    if value == json!("acme") {
        return Ok(json!({"acme": {}}));
    }
    let ordered = value.as_object().filter(|fields| fields.len() == 1);
    if ordered.is_some_and(|fields| fields.get("acme").is_some_and(Value::is_object)) {
        return Ok(value);
    }
    let brought = value.as_object().and_then(|fields: &Map<String, Value>| {
        let text = |field| fields.get(field)?.as_str();
        let (certificate, key) = text("certificate").zip(text("key"))?;
        (fields.len() == 2).then(|| json!({"sealed": {"certificate": certificate, "key": key}}))
    });
    brought.ok_or_else(|| {
        at(
            place,
            "write acme, {acme: {directory: https://…, contact: ops@example.org, ca: ca.pem}}, passthrough, or the files {certificate: chain.pem, key: key.pem}",
        )
    })
}

/// Reads the files of certificates that the file names: what stood there was where they lie.
/// Certificates that serve nobody at this time are refused here already, before anything is signed.
pub(crate) fn bring(deployment: &mut Deployment, base: &Path, now_s: u64) -> anyhow::Result<()> {
    for (host, site) in &mut deployment.ingress {
        let read = |path: &str, most: usize| -> anyhow::Result<String> {
            let path = base.join(path);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {} for ingress.{host}", path.display()))?;
            let is_pem = text.contains(PEM) && text.len() <= most;
            match is_pem {
                true => Ok(text),
                false => Err(Usage(format!(
                    "ingress.{host}: {} is not PEM of at most {most} bytes",
                    path.display()
                ))
                .into()),
            }
        };
        let (certificate, key) = match &mut site.tls {
            None | Some(Tls::Passthrough) => continue,
            Some(Tls::Acme(acme)) => {
                if let Some(ca) = acme.ca.as_mut().filter(|ca| !ca.contains(PEM)) {
                    *ca = read(ca, AUTHORITY_BYTES_MAX)?;
                }
                continue;
            }
            Some(Tls::Sealed { certificate, key }) => (certificate, key),
        };
        *certificate = read(certificate, CERTIFICATE_BYTES_MAX)?;
        // Sealed and in base64 it has a third more.
        *key = read(key, KEY_BYTES_MAX / 3 * 2)?;
        let refused = |what: &str| Err(Usage(format!("ingress.{host}: {what}")).into());
        if certificate.contains("PRIVATE KEY") {
            return refused(
                "the file of the certificate holds a private key too: leave that in its own file",
            );
        }
        let chain = Chain::read(certificate).and_then(|chain| chain.serves(host, now_s));
        match chain {
            Ok(chain) if chain.has_key(key) => {}
            Ok(_) => return refused("the private key is not the certificate's: bring both of one"),
            Err(why) => {
                return refused(&format!(
                    "its certificate is of no use: {why}; bring another, or write `tls: acme`"
                ));
            }
        }
    }
    Ok(())
}

/// The deployment as it is signed for a node: nobody else reads its private keys.
pub(crate) fn sealed_to(node: &PublicKey, deployment: &Deployment) -> anyhow::Result<Deployment> {
    let mut deployment = deployment.clone();
    for (host, site) in &mut deployment.ingress {
        if let Some(Tls::Sealed { key, .. }) = &mut site.tls
            && key.contains(PEM)
        {
            let recipient =
                Recipient::of_ed25519(&node.0).context("the node's key is no key to seal to")?;
            let sealed = seal(recipient, &host.key_purpose(), key.as_bytes())?;
            *key = STANDARD.encode(sealed);
        }
    }
    Ok(deployment)
}

/// Rows of a table: each name, who serves it, and what was answered.
pub(crate) fn rows(status: &DeploymentStatus) -> Vec<[String; 5]> {
    let row = |(host, site): (&Host, &SiteStatus)| {
        let backend = |(name, up): (&String, &Option<bool>)| {
            let node = site.nodes.get(name);
            let name = node.map_or_else(|| name.clone(), |node| format!("{name} on {node}"));
            match up {
                Some(true) => name,
                Some(false) => format!("{name} (does not answer)"),
                None => format!("{name} (not asked yet)"),
            }
        };
        let backends: Vec<String> = site.backends.iter().map(backend).collect();
        let answered = |hundreds: &[u64]| hundreds.iter().sum::<u64>().to_string();
        let fine = match &site.message {
            Some(message) => clean(message),
            None => "yes".to_owned(),
        };
        let failed = answered(&site.answered[4..]);
        let counts = format!("{}, of them 5xx: {failed}", answered(&site.answered));
        let certificate = site.certificate.as_ref().map_or_else(String::new, ends);
        let served_by = clean(&backends.join(", "));
        [host.to_string(), served_by, counts, certificate, fine]
    };
    status.ingress.iter().map(row).collect()
}

/// A certificate in a few words.
fn ends(certificate: &CertificateStatus) -> String {
    let until = certificate.until_s.map_or_else(String::new, shown);
    let next = |word: &str| match certificate.order_s {
        Some(order_s) => format!("{word} {}", shown(order_s)),
        None => "being ordered".to_owned(),
    };
    match certificate.state {
        CertificateState::Wanted => "wanted".to_owned(),
        CertificateState::Ordered => "being ordered".to_owned(),
        CertificateState::Waiting => next("ordered again at"),
        CertificateState::Valid if certificate.brought => format!("until {until}, brought"),
        CertificateState::Valid => format!("until {until}"),
        CertificateState::Ending => format!("until {until}, {}", next("ordered again at")),
        CertificateState::Expired => format!("expired on {until}"),
        CertificateState::Unreadable => "cannot be read".to_owned(),
    }
}

/// What is wrong with certificates, a line for each.
pub(crate) fn complaints(status: &DeploymentStatus) -> Vec<String> {
    let complaint = |(host, site): (&Host, &SiteStatus)| {
        let error = site.certificate.as_ref()?.error.as_ref()?;
        Some(format!("{host}: {}", clean(error)))
    };
    status.ingress.iter().filter_map(complaint).collect()
}

#[cfg(test)]
mod tests {
    use types::{Digest, Name};

    use super::*;
    use crate::spec;

    fn read(ingress: &str) -> Result<Deployment, String> {
        let yaml = format!(
            "name: shop\ningress:\n{ingress}\nworkloads:\n  web: {{image: x}}\n  api: {{image: x}}\n"
        );
        let mut resolve = |_: &str| Ok(Digest([0xaa; 32]));
        let draft = spec::parse(&yaml, &mut resolve).map_err(|error| error.to_string())?;
        assert_eq!(draft.name, "shop".parse::<Name>().ok());
        Ok(draft.deployment)
    }

    #[test]
    fn names_are_read_as_people_write_them() {
        let deployment = read(
            "  shop.example: {to: web:80, health: /up}\n\
             \x20 api.example: {to: [web:80, api:81], paths: {/v1: api:80}, tls: passthrough}\n",
        );
        // Paths cannot be seen in what is passed through.
        assert!(deployment.expect_err("refused").contains("passed through"));
        let deployment = read(
            "  shop.example: {to: web:80, health: /up}\n\
             \x20 api.example: {to: [web:80, api:81], paths: {/v1: api:80}}\n\
             \x20 raw.example: {to: web:443, tls: passthrough}\n",
        )
        .expect("a good file");
        let site = |host: &str| &deployment.ingress[&host.parse().expect("a host")];
        assert_eq!(
            site("shop.example")
                .health
                .as_ref()
                .and_then(|h| h.path.as_deref()),
            Some("/up")
        );
        let routes: Vec<(&str, usize)> = site("api.example")
            .routes
            .iter()
            .map(|r| (r.path.as_str(), r.to.len()))
            .collect();
        assert_eq!(routes, [("/v1", 1), ("/", 2)]);
        assert_eq!(site("raw.example").tls, Some(Tls::Passthrough));
    }

    #[test]
    fn what_nobody_can_serve_is_refused_with_its_place() {
        for (ingress, says) in [
            ("  a.b: {health: /up}", "ingress.a.b: needs `to`"),
            ("  a.b: {to: 80}", "ingress.a.b.to: write a machine"),
            (
                "  a.b: {to: web:80, tls: acne}",
                "ingress.a.b.tls: write acme",
            ),
            (
                "  a.b: {to: web:80, tls: {acme: {mail: x}}}",
                "unknown field `mail`",
            ),
            (
                "  a.b: {to: web:80, tls: {acme: {contact: nobody}}}",
                "no address of mail",
            ),
            ("  shop: {to: web:80, tls: acme}", "no public authority"),
            ("  A.B: {to: web:80}", "no host name"),
            ("  a.b: {to: db:80}", "there is no machine"),
        ] {
            let error = read(ingress).expect_err(ingress);
            assert!(error.contains(says), "{ingress}: {error}");
        }
    }

    #[test]
    fn certificates_are_ordered_where_the_file_says_and_the_authority_s_own_is_a_file_beside_it() {
        let directory = tempfile::tempdir().expect("temp");
        let (ca, _) = made("ca.example");
        fs::write(directory.path().join("ca.pem"), &ca).expect("write");
        let mut deployment = read(
            "  a.example.org: {to: web:80, tls: acme}\n\
             \x20 b.test: {to: web:80, tls: {acme: {directory: https://10.0.0.1:14000/dir, contact: ops@example.org, ca: ca.pem}}}\n",
        )
        .expect("a good file");
        bring(&mut deployment, directory.path(), 0).expect("it is there");
        let acme = |host: &str| match &deployment.ingress[&host.parse().expect("a host")].tls {
            Some(Tls::Acme(acme)) => acme.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(acme("a.example.org"), types::ingress::Acme::default());
        let own = acme("b.test");
        assert_eq!(own.directory, "https://10.0.0.1:14000/dir");
        assert_eq!(own.contact.as_deref(), Some("ops@example.org"));
        assert_eq!(own.ca, Some(ca));
        let mut missing = read("  a.org: {to: web:80, tls: {acme: {ca: none.pem}}}").expect("good");
        assert!(bring(&mut missing, directory.path(), 0).is_err());
    }

    /// A certificate and its key, in PEM form.
    fn made(name: &str) -> (String, String) {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_certificate_that_serves_nobody_is_refused_before_anything_is_signed() {
        let directory = tempfile::tempdir().expect("temp");
        let (own, key) = made("shop.example");
        let (other, other_key) = made("other.example");
        let file = "  shop.example: {to: web:80, tls: {certificate: c.pem, key: k.pem}}";
        for (certificate, key, now, says) in [
            (&own, &key, 1 << 37, "has expired"),
            (&other, &other_key, 0, "not for shop.example"),
            (&own, &other_key, 0, "not the certificate's"),
            (&format!("{own}{key}"), &key, 0, "a private key too"),
        ] {
            fs::write(directory.path().join("c.pem"), certificate).expect("write");
            fs::write(directory.path().join("k.pem"), key).expect("write");
            let mut deployment = read(file).expect("a good file");
            let error = bring(&mut deployment, directory.path(), now).expect_err(says);
            assert!(error.to_string().contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn what_is_known_of_a_certificate_is_said_in_a_few_words() {
        let status = |state, until_s, order_s| CertificateStatus {
            state,
            brought: false,
            until_s,
            order_s,
            failures: 0,
            error: None,
        };
        let (day, later) = (Some(1_800_000_000), Some(1_900_000_000));
        for (status, says) in [
            (status(CertificateState::Wanted, None, None), "wanted"),
            (
                status(CertificateState::Ordered, None, None),
                "being ordered",
            ),
            (
                status(CertificateState::Waiting, None, day),
                "ordered again at 2027-01-15 08:00 UTC",
            ),
            (
                status(CertificateState::Valid, day, later),
                "until 2027-01-15 08:00 UTC",
            ),
            (
                status(CertificateState::Ending, day, None),
                "until 2027-01-15 08:00 UTC, being ordered",
            ),
            (
                status(CertificateState::Expired, day, later),
                "expired on 2027-01-15 08:00 UTC",
            ),
        ] {
            assert_eq!(ends(&status), says);
        }
    }

    #[test]
    fn a_private_key_is_read_by_its_node_alone_and_for_its_name_alone() {
        let directory = tempfile::tempdir().expect("temp");
        let (own, own_key) = made("shop.example");
        fs::write(directory.path().join("c.pem"), own).expect("write");
        fs::write(directory.path().join("k.pem"), &own_key).expect("write");
        let mut deployment =
            read("  shop.example: {to: web:80, tls: {certificate: c.pem, key: k.pem}}")
                .expect("a good file");
        bring(&mut deployment, directory.path(), 0).expect("both are there");
        let key = api::SecretKey::generate().expect("a key");
        let sealed = sealed_to(&key.public(), &deployment).expect("sealed");
        let (host, site) = sealed.ingress.iter().next().expect("one");
        let Some(Tls::Sealed {
            certificate,
            key: text,
        }) = &site.tls
        else {
            panic!("sealed")
        };
        assert!(certificate.contains("BEGIN CERTIFICATE") && !text.contains("BEGIN"));
        let bytes = STANDARD.decode(text).expect("base64");
        let secret = vault::sealed::RecipientSecret::of_ed25519(key.seed());
        let opened = secret.open(&host.key_purpose(), &bytes).expect("opens");
        assert_eq!(opened.as_slice(), own_key.as_bytes());
        assert!(
            secret
                .open("sifr ingress key 1 other.example", &bytes)
                .is_err()
        );
        fs::copy(
            directory.path().join("k.pem"),
            directory.path().join("c.pem"),
        )
        .expect("copy");
        let mut wrong = read("  shop.example: {to: web:80, tls: {certificate: c.pem, key: k.pem}}")
            .expect("a good file");
        assert!(
            bring(&mut wrong, directory.path(), 0).is_err(),
            "a key is no certificate"
        );
    }
}
