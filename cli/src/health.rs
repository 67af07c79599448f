//! `sifr disk health`: what disks say of themselves.
//!
//! Owns: the table. Refuses: a verdict of its own, and to show as well what says nothing.

use anyhow::Context as _;
use serde_json::json;
use types::Name;
use types::health::DiskHealth;

use crate::Context;
use crate::disks::clients;
use crate::screen::table;

pub(crate) async fn show(context: &Context, nodes: &[Name]) -> anyhow::Result<()> {
    let mut all: Vec<(Name, Vec<DiskHealth>)> = Vec::new();
    for (name, client) in clients(context, nodes)? {
        let info = client.node_info().await;
        let info = info.with_context(|| format!("cannot ask node {name} for its disks"))?;
        all.push((name, info.health));
    }
    let value: Vec<_> = all
        .iter()
        .map(|(node, disks)| json!({ "node": node, "disks": disks }))
        .collect();
    context.screen.show(&value, || {
        let headings = [
            "NODE",
            "DISK",
            "SERIAL",
            "HEALTH",
            "CELSIUS",
            "LIFE USED",
            "SPARE",
            "LOST DATA",
            "REPLACED",
            "PENDING",
            "HOURS",
            "POWER LOST",
            "WHY",
        ];
        let disks = all
            .iter()
            .flat_map(|(node, disks)| disks.iter().map(move |disk| row(node, disk)));
        table(headings, &disks.collect::<Vec<_>>())
    })
}

/// What a disk does not say is a dash.
fn row(node: &Name, disk: &DiskHealth) -> [String; 13] {
    let f = &disk.health.figures;
    let count = |figure: Option<u64>| figure.map_or("-".to_owned(), |n| n.to_string());
    let percent = |figure: Option<u8>| figure.map_or("-".to_owned(), |n| format!("{n} %"));
    let celsius = f.temperature_celsius;
    [
        node.to_string(),
        disk.disk.clone(),
        disk.serial.clone(),
        disk.health.verdict.to_string(),
        celsius.map_or("-".to_owned(), |degrees| degrees.to_string()),
        percent(f.used_percent),
        percent(f.spare_percent),
        count(f.media_errors),
        count(f.reallocated_sectors),
        count(f.pending_sectors),
        count(f.power_on_hours),
        count(f.unsafe_shutdowns),
        disk.health.reasons.join(", "),
    ]
}
