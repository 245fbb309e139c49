//! Is everything equal once everything is at rest?

use std::collections::HashMap;
use std::time::Duration;

use bson::{Document, Timestamp, doc};
use futures::TryStreamExt;
use mongodb::Database;
use mongomirror::engine::bson::order::Value;
use tokio::time::Instant;

use crate::Result;
use crate::common;
use crate::history::{differences, documents};
use crate::mirror::{Mirror, Seen};
use crate::plan::Plan;
use crate::servers::{Databases, Servers, admin};

/// Longest wait for the mirror to catch up, on a slow machine; its pauses before another try are up
/// to 30 s, and an index that was refused has longer ones.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// A TTL index of the source may still delete while both sides are read: then they are read again.
const TRIES: u32 = 3;

/// What the names of buckets begin with.
const BUCKETS: &str = "system.buckets.";

/// Between two looks at what comes right by itself.
const PAUSE: Duration = Duration::from_millis(250);

/// What is different, and whether it comes right by itself.
struct Different {
    what: String,
    passes: bool,
}

/// Lets the mirror catch up and compares both sides; says what is wrong, if anything.
pub async fn judge(
    plan: &Plan,
    servers: &Servers,
    databases: &Databases,
    mirror: &mut Mirror,
    patience: Duration,
) -> Result<Option<String>> {
    servers.source().wait_until_settled().await?;
    servers.target().wait_until_settled().await?;
    mirror.start()?;
    databases.let_ttl_delete(false).await?;
    let deadline = Instant::now() + patience;
    let mut tries = 0;
    loop {
        let seen = match caught_up(databases, mirror, patience).await? {
            Ok(seen) => seen,
            Err(what) => return Ok(Some(what)),
        };
        let faceless = faceless(&databases.source).await?;
        let mut left_out = seen.unsupported.iter();
        let is_faceless = |what: &String| {
            let name = what.split(':').next().unwrap_or_default();
            faceless.contains(&format!("{BUCKETS}{name}"))
        };
        let different = if left_out.all(is_faceless) {
            compare(&databases.source, &databases.target, &faceless).await?
        } else {
            // Indexes that were refused are tried again.
            Some(Different {
                what: format!("left out: {}", seen.unsupported.join("; ")),
                passes: true,
            })
        };
        let Some(different) = different else {
            break;
        };
        // What strangers did is found by verifications.
        let limit = if different.passes || plan.strangers {
            Instant::now() < deadline
        } else {
            tries < TRIES
        };
        if !limit {
            return Ok(Some(different.what));
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
    }
    // Where the source forgets its past at once, no verification can succeed.
    if plan.verifies && !plan.forgets {
        return verified(plan, databases, mirror, patience).await;
    }
    Ok(None)
}

/// The mirror's own verification, at rest, finds nothing either, or nothing more.
async fn verified(
    plan: &Plan,
    databases: &Databases,
    mirror: &Mirror,
    patience: Duration,
) -> Result<Option<String>> {
    let now = operation_time(databases).await?;
    let mut seen = mirror.seen().ok_or("no mirror runs")?;
    let reached = |seen: &Seen| {
        let is_last = !plan.strangers || seen.last_differences == 0;
        is_last && seen.verified_at.is_some_and(|at| timestamp(at) >= now)
    };
    let found = tokio::time::timeout(patience, seen.wait_for(reached)).await;
    Ok(match found {
        Ok(Ok(found)) if found.last_differences > 0 => Some(format!(
            "verification finds {} differences where there are none",
            found.last_differences
        )),
        Ok(Ok(_)) => None,
        Ok(Err(_)) => Some("the mirror's process ended by itself".to_owned()),
        Err(_) => Some(format!("not verified within {patience:?}")),
    })
}

fn timestamp((time, increment): (u32, u32)) -> Timestamp {
    Timestamp { time, increment }
}

async fn operation_time(databases: &Databases) -> Result<Timestamp> {
    let ping = doc! {"ping": 1};
    let reply = admin(databases.source.client()).run_command(ping).await?;
    Ok(reply.get_timestamp("operationTime")?)
}

/// Waits until the target is what the source is now; what hinders it otherwise.
async fn caught_up(
    databases: &Databases,
    mirror: &Mirror,
    patience: Duration,
) -> Result<std::result::Result<Seen, String>> {
    let now = operation_time(databases).await?;
    let mut seen = mirror.seen().ok_or("no mirror runs")?;
    let reached =
        |seen: &Seen| seen.live && seen.consistent_at.is_some_and(|at| timestamp(at) >= now);
    let begun = Instant::now();
    let found = tokio::time::timeout(patience, seen.wait_for(|seen| reached(seen))).await;
    Ok(match found {
        Ok(Ok(found)) => Ok(found.clone()),
        Ok(Err(_)) => Err("the mirror's process ended by itself".to_owned()),
        Err(_) => {
            let waited = begun.elapsed();
            Err(format!(
                "not caught up with {now} after {waited:.0?}: {:?}",
                mirror.seen().map(|seen| seen.borrow().clone())
            ))
        }
    })
}

/// What differs between both databases: documents, order, options, indexes, views.
async fn compare(
    source: &Database,
    target: &Database,
    faceless: &[String],
) -> Result<Option<Different>> {
    let documents = |what| {
        Some(Different {
            what,
            passes: false,
        })
    };
    let (mut left, right) = (common::hashes(source).await, common::hashes(target).await);
    for name in faceless {
        left.remove(name);
    }
    for name in left.keys().chain(right.keys()) {
        if left.get(name) != right.get(name) {
            for (side, all) in [("source", &left), ("target", &right)] {
                if !all.contains_key(name) {
                    return Ok(documents(format!("the {side} has no {name}")));
                }
            }
            let mut both = [read(source, name).await?, read(target, name).await?];
            both.iter_mut()
                .for_each(|documents| documents.sort_unstable());
            let what = differences(&both[0], &both[1]);
            return Ok(documents(format!("{name} differs: {what}")));
        }
    }
    for name in common::raw::capped(source).await {
        if let Some(what) = in_other_order(source, target, &name).await? {
            return Ok(documents(what));
        }
    }
    let (mut left, mut right) = (
        common::definitions(source).await,
        common::definitions(target).await,
    );
    for name in faceless {
        // Servers look for the indexes of whatever has that name in the buckets.
        let taken = name.strip_prefix(BUCKETS).unwrap_or(name);
        left.remove(taken);
        right.remove(taken);
    }
    let names = left.keys().chain(right.keys());
    let wrong = names
        .into_iter()
        .find(|name| left.get(*name) != right.get(*name));
    Ok(wrong.map(|name| {
        Different {
            what: format!(
                "options or indexes of {name} differ:\n  source {:?}\n  target {:?}",
                left.get(name),
                right.get(name)
            ),
            // Unique indexes are enforced within moments.
            passes: true,
        }
    }))
}

/// Two documents of a capped collection that lie in another order on the target, if there are any.
/// Where several clients insert at once, a primary may lay documents in another order than its
/// oplog has, and so than its secondaries: then the target may have either (docs/limits.md).
async fn in_other_order(
    source: &Database,
    target: &Database,
    name: &str,
) -> Result<Option<String>> {
    if read(source, name).await? == read(target, name).await? {
        return Ok(None);
    }
    let places = |ids: Vec<Value>| -> HashMap<Value, usize> {
        let numbered = ids.into_iter().enumerate();
        numbered.map(|(place, id)| (id, place)).collect()
    };
    let lying = places(common::raw::ids_as_they_lie(source, name).await);
    // The last insert counts. What is not in the oplog any more was there before all that is.
    let inserted = places(common::raw::ids_as_inserted(source, name).await);
    let there = common::raw::ids_as_they_lie(target, name).await;
    let wrong = there.iter().enumerate().find_map(|(place, first)| {
        let then = there[place + 1..].iter().find(|then| {
            lying.get(first) > lying.get(then) && inserted.get(first) >= inserted.get(then)
        })?;
        Some(format!(
            "{name} is capped, and has its documents in another order: {first:?} before {then:?}, \
             which lie at {:?} and {:?} on the source, and in its oplog at {:?} and {:?}",
            lying.get(first),
            lying.get(then),
            inserted.get(first),
            inserted.get(then)
        ))
    });
    Ok(wrong)
}

/// Buckets without a time series: somebody took its name between both steps of its creation.
async fn faceless(database: &Database) -> Result<Vec<String>> {
    let cursor = database
        .run_cursor_command(doc! {"listCollections": 1})
        .await?;
    let listed: Vec<Document> = cursor.try_collect().await?;
    let of = |kind: &'static str| {
        let those = listed
            .iter()
            .filter(move |one| one.get_str("type").is_ok_and(|it| it == kind));
        those.filter_map(|one| one.get_str("name").ok())
    };
    let faces: Vec<&str> = of("timeseries").collect();
    let is_faceless = |name: &&str| {
        let face = name.strip_prefix(BUCKETS);
        face.is_some_and(|face| !faces.contains(&face))
    };
    Ok(of("collection")
        .filter(is_faceless)
        .map(ToOwned::to_owned)
        .collect())
}

/// In natural order.
async fn read(database: &Database, collection: &str) -> Result<Vec<Vec<u8>>> {
    documents(database, doc! {"find": collection, "sort": {"$natural": 1}}).await
}
