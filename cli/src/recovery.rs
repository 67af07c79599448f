//! The recovery key in shares, what it opens, and the end of a node's disks.
//!
//! Owns: the files with shares, the passphrase of an encrypted disk, the wish to decommission and its receipt.
//! Refuses: to send a recovery key or a share anywhere: what is sealed comes here to be opened.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context as _, bail};
use api::{Client, ClientError, Envelope};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use types::Name;
use types::node::{Disk, DiskUse, Encryption};
use types::retire::{Destroyed, Method, Receipt, Remaining, Retirement, Unlock};
use vault::luks::{HEADERS_BYTES, Header};
use vault::recovery::{self, PaperShare};
use vault::sealed::RecipientSecret;
use zeroize::Zeroizing;

use crate::Context;
use crate::args::{Decommission, NewRecovery, Recover, UnlockDisk};
use crate::disks::confirm;
use crate::failure::Usage;
use crate::screen::{mebibytes, table};

/// Longest share that is read: its line has 170 letters, the rest is room for an editor.
const SHARE_MAX: u64 = 1024;

/// Makes a recovery key. Its shares are the only place where it is.
pub(crate) fn new(context: &Context, options: &NewRecovery) -> anyhow::Result<()> {
    let (key, shares) =
        recovery::make(options.shares, options.need).map_err(|error| Usage(error.to_string()))?;
    let directory = &options.directory;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut files = Vec::new();
    for share in &shares {
        let file = directory.join(format!("share-{}-of-{}", share.number(), shares.len()));
        write_new(&file, &share.line())
            .with_context(|| format!("cannot write {}", file.display()))?;
        files.push(file);
    }
    context.screen.note(&format!(
        "{} shares in {}: give each to another person and remove it here. Any {} of them are the key; it is nowhere else.",
        shares.len(),
        directory.display(),
        options.need
    ));
    context.screen.note(&format!(
        "Boot nodes with sifr.recovery={key} before they make their pools."
    ));
    context.screen.show(
        &json!({ "recovery": key.to_string(), "files": files }),
        || key.to_string(),
    )
}

/// Never over another share.
fn write_new(path: &Path, line: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(line.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// What opens the disk: for `cryptsetup open` on any Linux.
pub(crate) async fn recover(context: &Context, options: &Recover) -> anyhow::Result<()> {
    let passphrase = match (&options.device, &options.serial) {
        (Some(device), _) => of_device(context, device, &options.shares)?,
        (None, Some(serial)) => {
            let (_, _, client) = context.home.client(context.node.as_deref())?;
            let disk = find(&client, serial).await?;
            of_disk(context, &disk, &options.shares)?
        }
        (None, None) => {
            return Err(Usage("name a disk by its serial, or --device".to_owned()).into());
        }
    };
    context
        .screen
        .show(&json!({ "passphrase": *passphrase }), || {
            passphrase.to_string()
        })
}

/// Has the node open the disk, by its own TPM from now on.
pub(crate) async fn unlock(context: &Context, options: &UnlockDisk) -> anyhow::Result<()> {
    let (node, _, client) = context.home.client(context.node.as_deref())?;
    let disk = find(&client, &options.serial).await?;
    let passphrase = match &options.passphrase_file {
        Some(file) => {
            let text = fs::read_to_string(file).map(Zeroizing::new);
            let text = text.with_context(|| format!("cannot read {}", file.display()))?;
            Zeroizing::new(text.trim_end_matches('\n').to_owned())
        }
        None => of_disk(context, &disk, &options.shares)?,
    };
    let unlock = Unlock {
        serial: disk.serial,
        passphrase: passphrase.to_string(),
    };
    let done = client.unlock_disk(&unlock).await;
    drop(Zeroizing::new(unlock.passphrase));
    let done = done.with_context(|| format!("node {node} cannot unlock the disk"))?;
    context.screen.show(&done, || {
        format!(
            "{}: this machine opens it from now on; the node starts again, and is who it was: pin its old key again",
            done.serial
        )
    })
}

async fn find(client: &Client, serial: &str) -> anyhow::Result<Disk> {
    let disks = client
        .disks()
        .await
        .context("cannot ask the node for its disks")?;
    let mut found = disks.disks.into_iter().filter(|disk| disk.serial == serial);
    match (found.next(), found.next()) {
        (Some(disk), None) => Ok(disk),
        (None, _) => Err(Usage(format!("no disk has the serial {serial}")).into()),
        (Some(_), Some(_)) => Err(Usage(format!("several disks have the serial {serial}")).into()),
    }
}

fn of_disk(
    context: &Context,
    disk: &Disk,
    shares: &[std::path::PathBuf],
) -> anyhow::Result<Zeroizing<String>> {
    let serial = &disk.serial;
    let (recipient, sealed) = match &disk.encryption {
        Some(Encryption::Encrypted {
            recovery: Some(recovery),
            sealed: Some(sealed),
            ..
        }) => (recovery, sealed),
        Some(Encryption::Encrypted { .. }) => {
            bail!("the header of disk {serial} has no passphrase for a recovery key")
        }
        Some(Encryption::Clear {}) => bail!("the pool on disk {serial} is not encrypted"),
        None => bail!("disk {serial} has no pool"),
    };
    let sealed = STANDARD.decode(sealed).context("the node says no base64")?;
    open(context, recipient, &sealed, shares)
}

/// Of a partition of this machine, or a file with its beginning.
fn of_device(
    context: &Context,
    device: &Path,
    shares: &[std::path::PathBuf],
) -> anyhow::Result<Zeroizing<String>> {
    let mut beginning = vec![0; HEADERS_BYTES];
    let read = fs::File::open(device).and_then(|mut file| file.read_exact(&mut beginning));
    read.with_context(|| format!("cannot read {}", device.display()))?;
    let header = Header::parse(&beginning);
    let header = header.with_context(|| format!("{} is no encrypted pool", device.display()))?;
    let recovery = header
        .recovery()
        .context("its header has no passphrase for a recovery key")?;
    open(
        context,
        &recovery.recipient.to_string(),
        &recovery.sealed,
        shares,
    )
}

fn open(
    context: &Context,
    recipient: &str,
    sealed: &[u8],
    shares: &[std::path::PathBuf],
) -> anyhow::Result<Zeroizing<String>> {
    let key = match shares {
        [] => RecipientSecret::of_ed25519(context.home.key()?.seed()),
        shares => {
            let read: anyhow::Result<Vec<_>> = shares.iter().map(|file| share(file)).collect();
            recovery::combine(&read?).map_err(|error| Usage(error.to_string()))?
        }
    };
    if key.public().to_string() != recipient {
        let yours = match shares {
            [] => "your own key is not that: name files with its shares by --share",
            _ => "these shares are of another key",
        };
        return Err(Usage(format!(
            "it is sealed to the recovery key {recipient}; {yours}"
        ))
        .into());
    }
    let opened = key.open(recovery::PURPOSE, sealed)?;
    let text = std::str::from_utf8(&opened).context("what was sealed is no passphrase")?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn share(file: &Path) -> anyhow::Result<PaperShare> {
    let mut text = Zeroizing::new(String::new());
    let read = fs::File::open(file).and_then(|file| file.take(SHARE_MAX).read_to_string(&mut text));
    read.with_context(|| format!("cannot read {}", file.display()))?;
    text.parse()
        .with_context(|| format!("{} is no share", file.display()))
}

/// Destroys the keys of a node's disks, and keeps the receipt.
pub(crate) async fn decommission(context: &Context, options: &Decommission) -> anyhow::Result<()> {
    let (name, pin, client) = context.home.client(context.node.as_deref())?;
    let listed = client.disks().await;
    let listed = listed.with_context(|| format!("cannot ask node {name} for its disks"))?;
    let owned = |disk: &&Disk| match disk.used {
        // A blank one on which no pool could be made has nothing to destroy.
        DiskUse::Pool | DiskUse::OtherPool => disk.encryption.is_some(),
        DiskUse::Ready | DiskUse::LeftAlone => false,
    };
    let wanted =
        |disk: &&Disk| options.serials.is_empty() || options.serials.contains(&disk.serial);
    let disks: Vec<_> = listed.disks.iter().filter(owned).filter(wanted).collect();
    if let Some(missing) = options
        .serials
        .iter()
        .find(|s| !disks.iter().any(|d| d.serial == **s))
    {
        return Err(Usage(format!(
            "node {name} has no pool on a disk with the serial {missing}"
        ))
        .into());
    }
    if disks.is_empty() {
        return Err(Usage(format!(
            "node {name} has no pool: there is nothing to destroy"
        ))
        .into());
    }
    show_loss(context, &name, &disks);
    if !options.yes {
        confirm(context, disks.len())?;
    }
    let wish = Retirement {
        node: pin.key,
        challenge: listed.challenge,
        disks: disks.iter().map(|disk| disk.serial.clone()).collect(),
    };
    let sealed = Envelope::seal_retirement(&context.home.key()?, &wish)?;
    let answer = keep_receipt(&client, &name, &sealed, &options.receipt).await?;
    let receipt = answer
        .open_receipt(|key| *key == pin.key)
        .context("the receipt is not signed by the node")?;
    if receipt.node != wish.node || receipt.challenge != wish.challenge {
        bail!(
            "the receipt answers another wish: see {}",
            options.receipt.display()
        );
    }
    show_receipt(context, &name, &receipt, &options.receipt)?;
    let undone = undone(&wish, &receipt);
    match undone.as_slice() {
        [] => Ok(()),
        undone => bail!("node {name} has NOT destroyed {}", undone.join(", ")),
    }
}

/// What the node answers, which is on this machine's disk when this returns.
async fn keep_receipt(
    client: &Client,
    node: &Name,
    wish: &Envelope,
    path: &Path,
) -> anyhow::Result<Envelope> {
    // Before anything is destroyed: there is one chance to keep it.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .with_context(|| format!("cannot write the receipt {}", path.display()))?;
    let answer = client.decommission(wish).await;
    if answer.is_err() {
        // It is empty, and would be in the way of the next try.
        let _ = fs::remove_file(path);
    }
    let answer = answer.map_err(|error| {
        let what = match &error {
            ClientError::Refused { .. } => "was not decommissioned",
            _ => {
                "gave no receipt: if it switches itself off now, its disks are destroyed, and nobody signs another one"
            }
        };
        anyhow::Error::from(error).context(format!("node {node} {what}"))
    })?;
    file.write_all(&answer.to_json())?;
    file.sync_all()?;
    Ok(answer)
}

/// Serials of disks that the wish names and the receipt does not.
fn undone<'a>(wish: &'a Retirement, receipt: &Receipt) -> Vec<&'a str> {
    let done = |serial: &&String| receipt.disks.iter().any(|disk| disk.serial == **serial);
    let undone = wish.disks.iter().filter(|serial| !done(serial));
    undone.map(String::as_str).collect()
}

fn encrypted(disk: &Disk) -> &'static str {
    match disk.encryption {
        Some(Encryption::Encrypted { .. }) => "its keys are destroyed, nobody reads it again",
        Some(Encryption::Clear {}) | None => "NOT ENCRYPTED: only its beginning is destroyed",
    }
}

fn show_loss(context: &Context, node: &Name, disks: &[&Disk]) {
    let row = |disk: &&Disk| {
        [
            node.to_string(),
            disk.name.clone(),
            disk.serial.clone(),
            mebibytes(disk.size.0),
            encrypted(disk).to_owned(),
        ]
    };
    let rows: Vec<_> = disks.iter().map(row).collect();
    let headings = ["NODE", "DISK", "SERIAL", "SIZE", "ALL OF THIS WILL BE LOST"];
    context.screen.note(table(headings, &rows).trim_end());
}

fn show_receipt(
    context: &Context,
    node: &Name,
    receipt: &Receipt,
    file: &Path,
) -> anyhow::Result<()> {
    for Remaining { serial, why } in &receipt.remaining {
        let note = format!("{serial}: NOT destroyed: {why}");
        context.screen.note(&note);
    }
    context.screen.note(&format!(
        "node {node} switches itself off; its signed receipt is in {}",
        file.display()
    ));
    context.screen.show(receipt, || {
        let row = |disk: &Destroyed| {
            let method = match disk.method {
                Method::CryptoErase => "crypto-erased: no key is left",
                Method::BeginningOnly => "NOT ENCRYPTED: what is behind the beginning can be read",
            };
            [
                disk.serial.clone(),
                disk.model.clone(),
                mebibytes(disk.size.0),
                mebibytes(disk.overwritten.0),
                method.to_owned(),
            ]
        };
        let rows: Vec<_> = receipt.disks.iter().map(row).collect();
        table(["SERIAL", "MODEL", "SIZE", "OVERWRITTEN", "NOW"], &rows)
    })
}

#[cfg(test)]
mod tests {
    use types::{Bytes, Digest, PublicKey};

    use super::*;

    #[test]
    fn a_receipt_for_some_of_the_disks_is_not_taken_for_all_of_them() {
        let wish = Retirement {
            node: PublicKey([1; 32]),
            challenge: Digest([2; 32]),
            disks: vec!["A".to_owned(), "B".to_owned()],
        };
        let destroyed = |serial: &str| Destroyed {
            serial: serial.to_owned(),
            model: String::new(),
            size: Bytes(1),
            method: Method::CryptoErase,
            uuid: None,
            overwritten: Bytes(1),
            discarded: true,
        };
        let mut receipt = Receipt {
            node: wish.node,
            challenge: wish.challenge,
            time_ms: 0,
            synchronised: true,
            disks: vec![destroyed("A")],
            remaining: Vec::new(),
        };
        assert_eq!(undone(&wish, &receipt), ["B"]);
        receipt.disks.push(destroyed("B"));
        assert!(undone(&wish, &receipt).is_empty());
    }
}
