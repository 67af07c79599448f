//! Pulling, from registries that fail.
//!
//! Owns: what a pull promises, kept while the fake breaks what it can. Refuses: registries elsewhere.

use super::*;
use crate::fake::{Fake, Fault};
use crate::signature::tests::{pair, payload, sign};
use tempfile::TempDir;

const CONFIG: &[u8] = br#"{"os":"linux","architecture":"amd64"}"#;

/// Longer than what comes at once, and nowhere the same.
fn layer() -> Vec<u8> {
    (0..40_000u32).flat_map(|n| (n * n).to_le_bytes()).collect()
}

/// A registry with one image, `app:1`, in an index with another platform before it.
async fn registry(faults: &[Fault], login: Option<&str>) -> Fake {
    let fake = Fake::start(faults, login).await;
    let config = fake.blob("app", CONFIG);
    let lower = fake.blob("app", &layer());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_IMAGE_MEDIA_TYPE,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": CONFIG.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": lower, "size": layer().len() }],
    })
    .to_string();
    let digest = fake.manifest("app", "amd64", OCI_IMAGE_MEDIA_TYPE, &manifest);
    let platform = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
    let entry = |architecture: &str, digest: &str, size: usize| json!({ "mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": digest, "size": size, "platform": platform(architecture) });
    let other = format!("sha256:{}", "0".repeat(64));
    let index = |entries: &[serde_json::Value]| {
        json!({ "schemaVersion": 2, "mediaType": OCI_IMAGE_INDEX_MEDIA_TYPE, "manifests": entries })
            .to_string()
    };
    let both = index(&[
        entry("arm64", &other, 1),
        entry("amd64", &digest, manifest.len()),
    ]);
    fake.manifest("app", "1", OCI_IMAGE_INDEX_MEDIA_TYPE, &both);
    fake.manifest(
        "app",
        "arm",
        OCI_IMAGE_INDEX_MEDIA_TYPE,
        &index(&[entry("arm64", &other, 1)]),
    );
    fake
}

/// Puts a signature beside the manifest `digest`, as cosign does.
fn put_signature(fake: &Fake, digest: &str, payload: &[u8], signed: &str) {
    let config = fake.blob("app", b"{}");
    let layer = fake.blob("app", payload);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_IMAGE_MEDIA_TYPE,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
        "layers": [{
            "mediaType": signature::PAYLOAD, "digest": layer, "size": payload.len(),
            "annotations": { signature::ANNOTATION: signed },
        }],
    });
    let tag = signature::tag(digest);
    fake.manifest("app", &tag, OCI_IMAGE_MEDIA_TYPE, &manifest.to_string());
}

#[tokio::test]
async fn where_a_signature_is_demanded_an_image_comes_with_the_right_one_only() {
    let work = TempDir::new().expect("temp");
    let (ours, theirs) = (
        pair(work.path(), "ours", "p256"),
        pair(work.path(), "theirs", "p256"),
    );
    let demand =
        |key: &Key| Access::default().with_policy(crate::Policy::for_all(vec![key.clone()]));
    let fake = registry(&[], None).await;
    let (got, _) = pulled(&fake, "app:1", &Access::default())
        .await
        .expect("comes");
    let error = pulled(&fake, "app:1", &demand(&ours))
        .await
        .expect_err("unsigned");
    assert!(matches!(error, PullError::Unsigned { .. }), "{error}");
    assert!(error.to_string().contains("ours.pub"), "{error}");
    let sign = |digest: &str| {
        let payload = payload(digest);
        let signed = sign(work.path(), "ours", "p256", &payload);
        (payload, signed)
    };
    // The image, not the index that names it: either will do.
    let (payload, signed) = sign(&got.digest);
    put_signature(&fake, &got.digest, &payload, &signed);
    pulled(&fake, "app:1", &demand(&ours)).await.expect("comes");
    let error = pulled(&fake, "app:1", &demand(&theirs))
        .await
        .expect_err("another's");
    assert!(
        matches!(error, PullError::Foreign { count: 1, .. }),
        "{error}"
    );
    // A right signature, of an image that one would rather have run.
    let (payload, signed) = sign(&format!("sha256:{}", "1".repeat(64)));
    put_signature(&fake, &got.digest, &payload, &signed);
    let error = pulled(&fake, "app:1", &demand(&ours))
        .await
        .expect_err("another image's");
    assert!(matches!(error, PullError::SignedOther { .. }), "{error}");
}

/// Pulls `name` of the registry; returns what came, and the bytes of its layer.
async fn pulled(fake: &Fake, name: &str, access: &Access) -> Result<(Pulled, Vec<u8>), PullError> {
    let layout = TempDir::new().expect("temp");
    let image = Reference::read(&format!("{}/{name}", fake.host))
        .expect("a registry's")
        .expect("right");
    let mut last = None;
    let got = pull(&image, access, layout.path(), &mut |progress| {
        last = Some(progress)
    })
    .await?;
    let last = last.expect("reported");
    assert_eq!((last.done_bytes, last.total_bytes), (got.bytes, got.bytes));
    assert!(
        layout.path().join("oci-layout").is_file() && layout.path().join("index.json").is_file()
    );
    let hex = hex(&Sha256::digest(layer()));
    Ok((
        got,
        fs::read(layout.path().join("blobs/sha256").join(hex)).expect("the layer"),
    ))
}

async fn comes_whole(faults: &[Fault]) -> Fake {
    let fake = registry(faults, None).await;
    let (got, bytes) = pulled(&fake, "app:1", &Access::default())
        .await
        .expect("comes");
    assert_eq!(
        (got.layers, got.bytes),
        (1, (CONFIG.len() + layer().len()) as u64)
    );
    assert!(bytes == layer(), "{faults:?}");
    fake
}

#[tokio::test]
async fn an_image_for_this_platform_comes_as_a_layout() {
    comes_whole(&[]).await;
}

#[tokio::test]
async fn a_download_that_is_cut_goes_on_where_it_was() {
    let fake = comes_whole(&[Fault::Cuts]).await;
    assert_eq!(fake.asked("/blobs/"), 1 + layer().len().div_ceil(40_000));
}

#[tokio::test]
async fn a_registry_without_ranges_sends_a_cut_blob_again() {
    let fake = comes_whole(&[Fault::Cuts, Fault::NoRanges]).await;
    assert_eq!(fake.asked("/blobs/"), 3);
}

#[tokio::test]
async fn a_busy_registry_is_asked_again() {
    comes_whole(&[Fault::Busy]).await;
}

#[tokio::test]
async fn other_bytes_than_the_digest_says_are_refused() {
    let fake = registry(&[Fault::Wrong], None).await;
    let error = pulled(&fake, "app:1", &Access::default())
        .await
        .expect_err("wrong");
    assert!(matches!(error, PullError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_without_end_is_read_to_where_it_should_end() {
    comes_whole(&[Fault::Endless]).await;
}

#[tokio::test]
async fn what_is_not_there_is_told_from_what_is_for_others() {
    let fake = registry(&[], None).await;
    let error = pulled(&fake, "app:2", &Access::default())
        .await
        .expect_err("no such tag");
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    let error = pulled(&fake, "app:arm", &Access::default())
        .await
        .expect_err("another platform");
    assert!(
        error.to_string().ends_with("only for linux/arm64"),
        "{error}"
    );
}

#[tokio::test]
async fn a_private_image_needs_the_login_that_docker_keeps() {
    // user:secret
    let fake = registry(&[], Some("dXNlcjpzZWNyZXQ=")).await;
    let error = pulled(&fake, "app:1", &Access::default())
        .await
        .expect_err("no login");
    assert!(error.to_string().contains("docker login"), "{error}");
    let home = TempDir::new().expect("temp");
    let login = format!(
        r#"{{"auths":{{"{}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#,
        fake.host
    );
    fs::write(home.path().join("config.json"), login).expect("writes");
    let docker = |name: &str| (name == "DOCKER_CONFIG").then(|| home.path().into());
    let access = Access::of_this_machine(docker).expect("reads");
    pulled(&fake, "app:1", &access).await.expect("comes");
}

#[tokio::test]
async fn a_mirror_is_used_and_where_it_fails_the_registry_is() {
    let (fake, mirror) = (registry(&[], None).await, registry(&[], None).await);
    let through = |mirror: &str| {
        let text = format!("{}={mirror}", fake.host);
        Access::of_this_machine(|name| {
            (name == "SIFR_REGISTRY_MIRRORS").then(|| text.clone().into())
        })
        .expect("a mirror")
    };
    let (got, _) = pulled(&fake, "app:1", &through(&mirror.host))
        .await
        .expect("comes");
    assert_eq!((got.from, fake.asked("/v2/")), (mirror.host, 0));
    let broken = registry(&[Fault::Gone], None).await;
    let (got, bytes) = pulled(&fake, "app:1", &through(&broken.host))
        .await
        .expect("comes");
    assert_eq!(got.from, fake.host);
    assert!(bytes == layer());
}

#[tokio::test]
async fn a_manifest_that_asks_for_too_much_is_refused_before_anything_comes() {
    let fake = Fake::start(&[], None).await;
    let digest = fake.blob("app", CONFIG);
    let descriptor = |size: u64| json!({ "mediaType": "x", "digest": digest, "size": size });
    let manifest = |layers: Vec<serde_json::Value>| {
        json!({ "schemaVersion": 2, "config": descriptor(37), "layers": layers }).to_string()
    };
    let bad = json!({ "mediaType": "x", "digest": "sha256:../../etc/passwd", "size": 1 });
    for (tag, layers) in [
        ("many", vec![descriptor(1); LAYERS_MAX + 1]),
        ("long", vec![descriptor(u64::MAX), descriptor(1)]),
        ("path", vec![bad]),
    ] {
        fake.manifest("app", tag, OCI_IMAGE_MEDIA_TYPE, &manifest(layers));
        let error = pulled(&fake, &format!("app:{tag}"), &Access::default())
            .await
            .expect_err(tag);
        assert!(
            matches!(error, PullError::Large { .. } | PullError::Digest(_)),
            "{error}"
        );
    }
    assert_eq!(fake.asked("/blobs/"), 0);
}

#[tokio::test]
async fn a_registry_that_is_away_is_named() {
    let layout = TempDir::new().expect("temp");
    // Port 1 needs privileges to listen on, and nobody does.
    let image = Reference::read("127.0.0.1:1/app:1")
        .expect("a registry's")
        .expect("right");
    let error = pull(&image, &Access::default(), layout.path(), &mut |_| {})
        .await
        .expect_err("away");
    assert!(
        error.to_string().contains("127.0.0.1:1 does not answer"),
        "{error}"
    );
}
