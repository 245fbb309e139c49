//! A spec that is changed at random, as its schema allows and beyond: nothing of that panics or
//! wedges the operator, and set back it converges.

mod common;

use common::cluster::{Cluster, mirror, secret};
use common::{assert_equal, eventually, fill, fresh_seed};
use mongomirror::resource::crd;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};
use testbed::Version;

/// Changes of the spec that the API server takes; most are refused.
const TAKEN: usize = 8;

/// Changes that are tried for that at most.
const CHANGES: i32 = 400;

/// Texts for fields of all kinds: names, patterns, durations, and what is none of them.
const TEXTS: [&str; 14] = [
    "",
    "mongo",
    "other",
    "shop",
    "shop_backup",
    "orders",
    "*",
    "o*",
    "1m",
    "24h",
    "0s",
    "uri",
    "mongodb://u:canary-random@h/?tls=maybe",
    "ü \"$%\u{7f}",
];

/// Something that a field of this schema may hold, or nearly.
fn value(schema: &Value, random: &mut StdRng) -> Value {
    if let Some(values) = schema["enum"].as_array() {
        let unknown = json!("Unknown");
        return match random.random_ratio(9, 10) {
            true => values.choose(random).cloned().unwrap_or(unknown),
            false => unknown,
        };
    }
    match schema["type"].as_str() {
        Some("object") => {
            let mut object = Map::new();
            for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
                match random.random_range(0..10) {
                    0..5 => drop(object.insert(name.clone(), value(schema, random))),
                    // As a merge patch: it is taken out.
                    5 => drop(object.insert(name.clone(), Value::Null)),
                    _ => {}
                }
            }
            Value::Object(object)
        }
        Some("array") => {
            let count = random.random_range(0..4);
            let items = (0..count).map(|_| value(&schema["items"], random));
            Value::Array(items.collect())
        }
        Some("boolean") => random.random::<bool>().into(),
        Some("integer") => {
            let bounds = [schema["minimum"].as_i64(), schema["maximum"].as_i64()];
            let bounds = bounds.map(|bound| bound.unwrap_or(i64::from(i32::MAX)));
            let all = [bounds[0], bounds[0] - 1, bounds[1], bounds[1] + 1, 0, -1, 2];
            (*all.choose(random).unwrap_or(&1)).into()
        }
        _ => {
            let text = TEXTS.choose(random).copied().unwrap_or_default();
            match random.random_range(0..20) {
                0 => "x".repeat(300).into(),
                _ => text.into(),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_that_is_changed_at_random_wedges_nothing_and_converges_when_it_is_set_back() {
    let seed = fresh_seed();
    let mut random = StdRng::seed_from_u64(seed);
    let (set, client) = common::start(Version::V6_0_27).await;
    let shop = client.database("shop");
    for collection in ["orders", "items", "others"] {
        fill(&shop, collection, 0, 100).await;
    }
    let cluster = Cluster::start().await;
    cluster.apply(&secret("mongo", &set.uri())).await;
    let manifest = mirror("shop", "mongo", "shop", "");
    cluster.apply(&manifest).await;
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    let definition = serde_json::to_value(crd::definition()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let schema = &schema["properties"]["spec"];
    let (mut taken, mut step) = (0, 0);
    while taken < TAKEN {
        assert!(step < CHANGES, "seed {seed}: only {taken} were taken");
        let spec = value(schema, &mut random);
        let patch = json!({"spec": spec}).to_string();
        let patch = ["patch", "mongomirror", "shop", "--type=merge", "-p", &patch];
        let output = cluster.plane.kubectl(&patch).await.unwrap();
        taken += usize::from(output.success);
        if output.success && random.random::<bool>() {
            let generation = cluster.field("shop", ".metadata.generation").await;
            let seen = ".status.observedGeneration";
            cluster.wait("shop", seen, &generation).await;
        }
        // Documents that nobody reads are not lost either.
        fill(&shop, "orders", 1000 + 10 * step, 10).await;
        step += 1;
    }
    eprintln!("seed {seed}: {taken} of {step} changes were taken");
    let resource = manifest.trim_end_matches("---\n");
    let replace = ["replace", "-f", "-"];
    let replaced = cluster.plane.kubectl_stdin(&replace, resource).await;
    replaced.and_then(testbed::Output::checked).unwrap();
    cluster.wait("shop", ".status.phase", "Mirroring").await;
    let copy = client.database("shop_backup");
    let copies = copy.collection::<bson::Document>("orders");
    let all = u64::try_from(100 + 10 * step).unwrap();
    eventually("everything arrives", async || {
        let count = copies.count_documents(bson::doc! {}).await.unwrap();
        (count == all).then_some(())
    })
    .await;
    assert_equal(&shop, &copy).await;
    let log = cluster.log();
    assert!(!log.contains("panicked"), "seed {seed}: {log}");
}
