//! Metrics in the OpenMetrics text form.
//!
//! Nothing is counted here: every scrape reads the registry, so a metric cannot disagree with
//! the status, and the series of a deleted mirror end by themselves.

use std::fmt;
use std::fs;
use std::time::UNIX_EPOCH;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry as Metrics, Unit};

use crate::engine::headroom::Headroom;
use crate::engine::progress::{InitialSync, Link, Phase, Totals, VerificationResult};
use crate::runner::registry::{Registry, Snapshot};

/// The metrics of this process and its mirrors.
pub fn registry(mirrors: Registry) -> Metrics {
    let mut metrics = Metrics::with_prefix("mongomirror");
    metrics.register_collector(Box::new(Mirrors { mirrors }));
    metrics
}

#[derive(Debug)]
struct Mirrors {
    mirrors: Registry,
}

impl Collector for Mirrors {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut out = Out {
            encoder,
            snapshots: self.mirrors.snapshots(),
        };
        state(&mut out)?;
        initial_sync(&mut out)?;
        totals(&mut out)?;
        process(&mut out)
    }
}

fn state(out: &mut Out<'_>) -> fmt::Result {
    out.gauges(
        "info",
        "The mirror's databases and phase; always 1.",
        None,
        |mirror| {
            let labels = vec![
                ("source_database", mirror.source_database.clone()),
                ("target_database", mirror.target_database.clone()),
                ("phase", format!("{:?}", mirror.phase())),
            ];
            vec![(labels, 1.0)]
        },
    )?;
    out.gauges(
        "phase",
        "1 for the phase that the mirror is in, 0 for the others.",
        None,
        |mirror| {
            const PHASES: [Phase; 6] = [
                Phase::Pending,
                Phase::Copying,
                Phase::CatchingUp,
                Phase::Mirroring,
                Phase::Paused,
                Phase::Failed,
            ];
            PHASES
                .into_iter()
                .map(|phase| {
                    let label = vec![("phase", format!("{phase:?}"))];
                    (label, flag(mirror.phase() == phase))
                })
                .collect()
        },
    )?;
    out.gauges(
        "enabled",
        "Whether the mirror is switched on.",
        None,
        |mirror| plain(flag(mirror.enabled)),
    )?;
    out.gauges(
        "connected",
        "Whether that side answers. Absent before the first try and while paused.",
        None,
        |mirror| {
            let side = |name: &str, link: &Link| {
                let connected = link.connected.filter(|_| !mirror.stale)?;
                Some((vec![("side", name.to_owned())], flag(connected)))
            };
            [
                side("source", &mirror.progress.source),
                side("target", &mirror.progress.target),
            ]
            .into_iter()
            .flatten()
            .collect()
        },
    )?;
    out.gauges(
        "lag",
        "How far the target is behind the source. Absent while it cannot be told.",
        Some(Unit::Seconds),
        |mirror| optional(mirror.progress.lag.map(|lag| lag.as_secs_f64())),
    )?;
    out.gauges(
        "applied_cluster_time",
        "The source's cluster time up to which changes are applied, since the epoch.",
        Some(Unit::Seconds),
        |mirror| {
            let position = mirror.progress.position;
            optional(position.map(|time| f64::from(time.seconds)))
        },
    )?;
    out.gauges(
        "consistent_at",
        "The source's cluster time at which the target is exactly the source, since the epoch.",
        Some(Unit::Seconds),
        |mirror| {
            let consistent_at = mirror.progress.consistent_at;
            optional(consistent_at.map(|time| f64::from(time.seconds)))
        },
    )?;
    let headroom = |mirror: &Snapshot| mirror.progress.headroom.as_ref().and_then(Headroom::left);
    out.gauges(
        "oplog_headroom",
        "How long the source's oplog still holds the mirror's position. Absent while unknown.",
        Some(Unit::Seconds),
        |mirror| optional(headroom(mirror).map(|left| left.time.as_secs_f64())),
    )?;
    out.gauges(
        "oplog_headroom",
        "How much the source may write until its oplog drops the mirror's position. Absent while \
         unknown.",
        Some(Unit::Bytes),
        |mirror| optional(headroom(mirror).map(|left| number(left.bytes))),
    )?;
    out.gauges(
        "quarantined_documents",
        "Documents that the target refuses although the source has them.",
        None,
        |mirror| plain(number(mirror.progress.quarantine.len() as u64)),
    )?;
    verification(out)?;
    out.gauges(
        "problem",
        "What keeps the mirror from its work, by reason. Absent if nothing does.",
        None,
        |mirror| {
            let problem = mirror.problem.as_ref();
            problem
                .map(|problem| (vec![("reason", problem.reason.to_string())], 1.0))
                .into_iter()
                .collect()
        },
    )
}

fn verification(out: &mut Out<'_>) -> fmt::Result {
    let last = |mirror: &Snapshot| mirror.progress.verification.last.clone();
    out.gauges(
        "verification_ended",
        "When the last comparison of both sides ended, since the epoch. Absent before the first.",
        Some(Unit::Seconds),
        |mirror| {
            let since = |result: VerificationResult| result.time.duration_since(UNIX_EPOCH).ok();
            optional(last(mirror).and_then(since).map(|time| time.as_secs_f64()))
        },
    )?;
    out.gauges(
        "verification",
        "How long the last comparison of both sides took.",
        Some(Unit::Seconds),
        |mirror| optional(last(mirror).map(|result| result.duration.as_secs_f64())),
    )?;
    type Read = fn(&VerificationResult) -> u64;
    let figures: [(&str, &str, Read); 3] = [
        (
            "verification_documents",
            "Documents of the source that the last comparison read.",
            |result| result.documents,
        ),
        (
            "verification_differences",
            "Documents, options and indexes that it found different.",
            |result| result.differences,
        ),
        (
            "verification_repaired",
            "How many of these differences were put right.",
            |result| result.repaired,
        ),
    ];
    for (name, help, read) in figures {
        out.gauges(name, help, None, |mirror| {
            optional(last(mirror).map(|result| number(read(&result))))
        })?;
    }
    Ok(())
}

fn initial_sync(out: &mut Out<'_>) -> fmt::Result {
    type Read = fn(&InitialSync) -> u64;
    let figures: [(&str, &str, Option<Unit>, Read); 6] = [
        (
            "initial_sync_documents_estimated",
            "Documents to copy, as estimated when the copy was planned.",
            None,
            |sync| sync.documents_total,
        ),
        (
            "initial_sync_documents_copied",
            "Documents copied so far.",
            None,
            |sync| sync.documents_copied,
        ),
        (
            "initial_sync_estimated",
            "Bytes to copy, as estimated when the copy was planned.",
            Some(Unit::Bytes),
            |sync| sync.bytes_total,
        ),
        (
            "initial_sync_copied",
            "Bytes copied so far.",
            Some(Unit::Bytes),
            |sync| sync.bytes_copied,
        ),
        (
            "initial_sync_collections",
            "Collections that take part.",
            None,
            |sync| sync.collections_total,
        ),
        (
            "initial_sync_collections_done",
            "Collections copied to the end, indexes included.",
            None,
            |sync| sync.collections_done,
        ),
    ];
    for (name, help, unit, read) in figures {
        out.gauges(name, help, unit, |mirror| {
            let sync = mirror.progress.initial_sync.as_ref();
            optional(sync.map(|sync| number(read(sync))))
        })?;
    }
    out.gauges(
        "initial_sync_progress",
        "How much of the initial copy is done, from 0 to 1.",
        Some(Unit::Other("ratio".into())),
        |mirror| {
            let sync = mirror.progress.initial_sync.as_ref();
            optional(sync.map(|sync| f64::from(sync.percent()) / 100.0))
        },
    )
}

fn totals(out: &mut Out<'_>) -> fmt::Result {
    type Read = fn(&Totals) -> u64;
    const BY_OPERATION: [(&str, Read); 4] = [
        ("insert", |totals| totals.inserts),
        ("update", |totals| totals.updates),
        ("delete", |totals| totals.deletes),
        ("command", |totals| totals.commands),
    ];
    out.counters(
        "events_applied",
        "Change events applied to the target, by operation.",
        |mirror| {
            BY_OPERATION
                .iter()
                .map(|(operation, read)| {
                    let label = vec![("op", (*operation).to_owned())];
                    (label, read(&mirror.progress.totals))
                })
                .collect()
        },
    )?;
    let figures: [(&str, &str, Read); 6] = [
        (
            "events_read",
            "Change events read from the source.",
            |totals| totals.events_read,
        ),
        (
            "operations_written",
            "Write operations sent to the target, after merging.",
            |totals| totals.operations_written,
        ),
        (
            "batches",
            "Transactions committed on the target.",
            |totals| totals.batches,
        ),
        (
            "repaired_documents",
            "Documents found different or missing and repaired.",
            |totals| totals.repaired,
        ),
        (
            "resyncs",
            "Times that both sides were compared and made equal because history was lost, or somebody asked for it.",
            |totals| totals.resyncs,
        ),
        (
            "retries",
            "Times a connection or a batch was tried again.",
            |totals| totals.retries,
        ),
    ];
    for (name, help, read) in figures {
        out.counters(name, help, |mirror| {
            vec![(Vec::new(), read(&mirror.progress.totals))]
        })?;
    }
    Ok(())
}

fn process(out: &mut Out<'_>) -> fmt::Result {
    if let Some(bytes) = resident_bytes() {
        out.process(
            "process_resident_memory",
            "Memory that this process holds.",
            Unit::Bytes,
            number(bytes),
        )?;
    }
    Ok(())
}

/// The resident set of this process, where the system tells it.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

type Labels = Vec<(&'static str, String)>;

/// Writes metric families over all mirrors.
struct Out<'a> {
    encoder: DescriptorEncoder<'a>,
    snapshots: Vec<Snapshot>,
}

impl Out<'_> {
    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        read: impl Fn(&Snapshot) -> Vec<(Labels, f64)>,
    ) -> fmt::Result {
        self.family(name, help, unit, MetricType::Gauge, |mirror| {
            let samples = read(mirror).into_iter();
            samples
                .map(|(labels, value)| (labels, ConstGauge::new(value)))
                .collect()
        })
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        read: impl Fn(&Snapshot) -> Vec<(Labels, u64)>,
    ) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, |mirror| {
            let samples = read(mirror).into_iter();
            samples
                .map(|(labels, value)| (labels, ConstCounter::new(value)))
                .collect()
        })
    }

    fn family<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        kind: MetricType,
        read: impl Fn(&Snapshot) -> Vec<(Labels, M)>,
    ) -> fmt::Result {
        let mut family = self
            .encoder
            .encode_descriptor(name, help, unit.as_ref(), kind)?;
        for mirror in &self.snapshots {
            for (labels, metric) in read(mirror) {
                metric.encode(family.encode_family(&MirrorLabels { mirror, labels })?)?;
            }
        }
        Ok(())
    }

    fn process(&mut self, name: &str, help: &str, unit: Unit, value: f64) -> fmt::Result {
        let metric = self
            .encoder
            .encode_descriptor(name, help, Some(&unit), MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }
}

/// `namespace`, `name` and what else tells a sample apart.
#[derive(Debug)]
struct MirrorLabels<'a> {
    mirror: &'a Snapshot,
    labels: Labels,
}

impl EncodeLabelSet for MirrorLabels<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let key = &self.mirror.key;
        ("namespace", key.namespace.as_str()).encode(encoder.encode_label())?;
        ("name", key.name.as_str()).encode(encoder.encode_label())?;
        for (label, value) in &self.labels {
            (*label, value.as_str()).encode(encoder.encode_label())?;
        }
        Ok(())
    }
}

fn plain(value: f64) -> Vec<(Labels, f64)> {
    vec![(Vec::new(), value)]
}

fn optional(value: Option<f64>) -> Vec<(Labels, f64)> {
    value.map(plain).unwrap_or_default()
}

fn flag(holds: bool) -> f64 {
    if holds { 1.0 } else { 0.0 }
}

/// Figures above 2^53 lose their last digits, which nobody plots.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::engine::progress::Progress;
    use crate::runner::registry::MirrorKey;
    use crate::runner::registry::tests::{listing, mirroring};

    fn scrape(mirrors: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry(mirrors.clone())).unwrap();
        text
    }

    #[test]
    fn a_mirror_has_its_series_as_long_as_it_is_listed() {
        let mirrors = Registry::default();
        let key = MirrorKey::new("shop", "orders");
        let mut progress = mirroring(SystemTime::now());
        progress.totals.inserts = 7;
        mirrors.set(key.clone(), listing(progress));
        let text = scrape(&mirrors);
        for line in [
            r#"mongomirror_enabled{namespace="shop",name="orders"} 1"#,
            r#"mongomirror_phase{namespace="shop",name="orders",phase="Mirroring"} 1"#,
            r#"mongomirror_connected{namespace="shop",name="orders",side="source"} 1"#,
            r#"mongomirror_lag_seconds{namespace="shop",name="orders"} 0.038"#,
            r#"mongomirror_events_applied_total{namespace="shop",name="orders",op="insert"} 7"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        mirrors.remove(&key);
        assert!(!scrape(&mirrors).contains("orders"));
    }

    #[test]
    fn what_is_unknown_has_no_sample() {
        let mirrors = Registry::default();
        mirrors.set(MirrorKey::new("n", "m"), listing(Progress::default()));
        let text = scrape(&mirrors);
        for metric in ["lag_seconds", "connected", "initial_sync_copied_bytes"] {
            let sample = format!("mongomirror_{metric}{{");
            assert!(!text.contains(&sample), "{sample} in\n{text}");
        }
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
