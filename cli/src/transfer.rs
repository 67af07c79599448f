//! `sifr flist push`, `pull`, `verify`, `gc` and `mirror`: images between stores.
//!
//! Owns: what the commands mean and show. Refuses: the order in which things move (`stores` has it).

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use serde_json::json;
use stores::transfer::{self, Fault, Moved, Problem};
use stores::{Image, Object, Set, sweep};
use types::Digest;

use crate::Context;
use crate::args::{Gc, Mirror, Pull, Push, Verify};
use crate::depot;
use crate::failure::Usage;
use crate::push::Images;
use crate::screen::{Screen, mebibytes};
use crate::source::Source;

/// Faults that are named one by one; JSON has all.
const SHOWN_MAX: usize = 20;

pub(crate) async fn push(context: &Context, options: &Push) -> anyhow::Result<()> {
    let screen = &context.screen;
    let to = depot::open(&options.stores, options.ca.as_deref())?;
    let mut images = Images::signed_by(context.policy()?);
    let source = Source::read(&options.image, Path::new(""))?;
    let digest = images.find(&source, screen)?;
    let local = images
        .get(&digest)
        .context("the image that was just read is here")?;
    let from = depot::directory(local.directory())?;
    let image = local.image();
    let moved = carry(screen, "pushing", &image, &from, &to).await?;
    keep_the_key(screen, &image);
    told(screen, "pushed", &[(digest, moved)])
}

pub(crate) async fn pull(screen: &Screen, options: &Pull) -> anyhow::Result<()> {
    let from = depot::open(&options.stores, options.ca.as_deref())?;
    let to = depot::directory(&options.store)?;
    let image = depot::read_with_trace(&from, &options.flist).await?;
    let moved = carry(screen, "pulling", &image, &from, &to).await?;
    screen.note(&summary("pulled", &image.digest, &moved));
    let file = options.store.join(image.entry.path());
    keep_the_key(screen, &image);
    let value = json!({
        "digest": image.digest,
        "file": file,
        "sent_chunks": moved.sent_chunks,
        "sent_bytes": moved.sent_bytes,
        "kept_chunks": moved.kept_chunks,
        "trace": moved.has_trace,
    });
    screen.show(&value, || file.display().to_string())
}

pub(crate) async fn mirror(screen: &Screen, options: &Mirror) -> anyhow::Result<()> {
    let ca = options.ca.as_deref();
    let from = depot::open(std::slice::from_ref(&options.from), ca)?;
    let to = depot::open(&options.to, ca)?;
    let mut flists = options.flists.clone();
    if flists.is_empty() {
        let store = from.stores().next().context("one store was named")?;
        let listed = store.images().await;
        flists = listed.context("name the flists to mirror with --flist")?;
        flists.sort_unstable();
    }
    let mut done = Vec::new();
    for digest in flists {
        let image = depot::read_with_trace(&from, &digest).await?;
        done.push((
            digest,
            carry(screen, "mirroring", &image, &from, &to).await?,
        ));
    }
    told(screen, "mirrored", &done)
}

async fn carry(
    screen: &Screen,
    doing: &'static str,
    image: &Image,
    from: &Set,
    to: &Set,
) -> anyhow::Result<Moved> {
    let meter = screen.meter(doing, image.stored_bytes());
    let moved = transfer::copy(image, from, to, &|done| meter.set(done)).await;
    meter.done();
    moved.with_context(|| {
        format!(
            "{doing} {} ended early: what has arrived stays, and the same command goes on from there",
            image.digest
        )
    })
}

/// Said of an encrypted image: what is in the store is no use without its file.
fn keep_the_key(screen: &Screen, image: &Image) {
    if matches!(image.entry, Object::Roll(_)) {
        screen.note(
            "the image is encrypted: its .flist file has the keys, is in no store, and is what you deploy",
        );
    }
}

fn summary(verb: &str, digest: &Digest, moved: &Moved) -> String {
    format!(
        "{verb} {digest}: sent {} in {} chunks, {} were there{}",
        mebibytes(moved.sent_bytes),
        moved.sent_chunks,
        moved.kept_chunks,
        if moved.has_trace {
            "; its trace as well"
        } else {
            ""
        }
    )
}

fn told(screen: &Screen, verb: &str, done: &[(Digest, Moved)]) -> anyhow::Result<()> {
    let value: Vec<_> = done
        .iter()
        .map(|(digest, moved)| {
            json!({
                "digest": digest,
                "sent_chunks": moved.sent_chunks,
                "sent_bytes": moved.sent_bytes,
                "kept_chunks": moved.kept_chunks,
                "trace": moved.has_trace,
            })
        })
        .collect();
    screen.show(&value, || {
        let line = |(digest, moved): &(Digest, Moved)| summary(verb, digest, moved) + "\n";
        done.iter().map(line).collect()
    })
}

pub(crate) async fn verify(screen: &Screen, options: &Verify) -> anyhow::Result<()> {
    let set = depot::open(&options.stores, options.ca.as_deref())?;
    let digest = options.flist;
    let image = match &options.file {
        Some(path) => {
            let local = crate::push::LocalImage::open(path)?;
            if local.digest != digest {
                return Err(Usage(format!(
                    "{} is {}, not {digest}",
                    path.display(),
                    local.digest
                ))
                .into());
            }
            local.image()
        }
        None => depot::read(&set, &digest).await?,
    };
    let stores = set.stores().count() as u64;
    let meter = screen.meter("verifying", image.stored_bytes() * stores);
    let faults = transfer::verify(&image, &set, &|done| meter.set(done)).await;
    meter.done();
    let word = |fault: &Fault| match &fault.what {
        Problem::Missing => "missing".to_owned(),
        Problem::Wrong => "wrong".to_owned(),
        Problem::Unreadable(why) => format!("unreadable: {why}"),
    };
    let value = json!({
        "digest": digest,
        "chunks": image.chunks.len(),
        "stores": stores,
        "faults": faults.iter().map(|fault| json!({
            "store": fault.store,
            "object": fault.object.path(),
            "problem": word(fault),
        })).collect::<Vec<_>>(),
    });
    screen.show(&value, || {
        let line =
            |fault: &Fault| format!("{}: {} is {}\n", fault.store, fault.object, word(fault));
        let mut text: String = faults.iter().take(SHOWN_MAX).map(line).collect();
        if faults.len() > SHOWN_MAX {
            text += &format!("and {} more\n", faults.len() - SHOWN_MAX);
        }
        if faults.is_empty() {
            text = format!("{digest} is whole: {} chunks\n", image.chunks.len());
        }
        text
    })?;
    match faults.len() {
        0 => Ok(()),
        count => bail!(
            "{count} objects of {digest} are not as they should be: remove what is wrong, then push the image again, or mirror it from a store that has it"
        ),
    }
}

pub(crate) async fn gc(screen: &Screen, options: &Gc) -> anyhow::Result<()> {
    let set = depot::open(std::slice::from_ref(&options.store), options.ca.as_deref())?;
    let store = set.stores().next().context("one store was named")?;
    let before = SystemTime::now()
        .checked_sub(options.grace)
        .context("the grace is longer than time")?;
    if options.grace < transfer::RENEW_AFTER * 2 && !options.dry_run {
        let least = Duration::as_secs(&(transfer::RENEW_AFTER * 2)) / 3600;
        return Err(Usage(format!(
            "a grace of less than {least}h would take chunks from pushes that are under way"
        ))
        .into());
    }
    // Chunks first: what an flist that comes meanwhile names is then either named or too young.
    let entries = store.list().await?;
    let mut named = BTreeSet::new();
    let (mut kept, mut forgotten) = (0, 0);
    for digest in store.images().await? {
        if options.forget.contains(&digest) {
            if !options.dry_run {
                for object in [Object::Flist, Object::Roll, Object::Trace] {
                    store.remove(&object(digest)).await?;
                }
            }
            forgotten += 1;
            continue;
        }
        let image = depot::read(&set, &digest).await.with_context(|| {
            format!("nothing was removed: what {digest} needs is not known. Mend it, or give it up with --forget {digest}")
        })?;
        named.extend(image.chunks.iter().map(|piece| piece.name));
        kept += 1;
    }
    let plan = sweep::plan(entries, &named, before);
    let (mut removed, mut drafts) = (plan.remove.len() as u64, 0);
    if !options.dry_run {
        removed = sweep::remove(store, &plan, before).await?;
        drafts = store.remove_drafts(before)?;
    }
    let value = json!({
        "dry_run": options.dry_run,
        "flists": kept,
        "forgotten_flists": forgotten,
        "named_chunks": plan.named,
        "young_chunks": plan.young,
        "removed_chunks": removed,
        "removed_bytes": plan.bytes(),
        "removed_drafts": drafts,
    });
    screen.show(&value, || {
        let verb = if options.dry_run { "would remove" } else { "removed" };
        format!(
            "{verb} {removed} chunks, {}; {} are named by {kept} flists, {} are younger than the grace",
            mebibytes(plan.bytes()),
            plan.named,
            plan.young
        )
    })
}
