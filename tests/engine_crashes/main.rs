//! The mirror's process dies before and after each of its writes, one by one, none forgotten; what
//! goes on from there ends with both databases equal.

mod changes;
#[path = "../common/mod.rs"]
mod common;

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use changes::{
    HIDDEN, change_collections, change_documents, change_kinds, change_many, enforces_seats,
    prepare, refuse, take,
};
use common::process::{Manifest, checkpoint, is_copied};
use common::{PATIENCE, assert_equal, definitions, fresh_seed, order};
use futures::{FutureExt, StreamExt};
use mongodb::{Client, Database};
use mongomirror::engine::writes::Write;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testbed::{Process, ReplicaSet, Version};

/// Cases at the same time: each waits for its servers more than it works.
const AT_ONCE: usize = 8;

/// So many of them share a mirror.
const TOGETHER: usize = 6;

/// What a process says when it has ended a mirror.
const ENDED: &str = "ended for good";

/// By then a process has heard of what it has written.
const HEARD: Duration = Duration::from_secs(20);

/// The signal of `std::process::abort`.
const SIGABRT: i32 = 6;

/// Parts of the scenario, each begun by a new process, so that it can be said in which of them it
/// dies: the copy, changes on the source, the end of the mirror and its return, a resync, another
/// selection and back.
const PHASES: usize = 5;

/// In every case a process also dies here, so that a range is left half copied.
const HALF_COPIED: &str = "0/CommitCopy:after:2";

/// Where mirrors have failed before: while a collection without its own name yet is dropped, and
/// while one that is renamed into the selection is planned.
const FOUND: [&[&str]; 2] = [
    &["0/InsertOutside:after:2", "0/RenameCollection:after:1"],
    &["1/InsertRanges:after:1"],
];

/// In the last phase, so that all others are as they are by default.
const IN_LANES: &str = "  apply: {mode: Parallel}\n";

/// A line of the log between two processes, with the phase behind it.
const STARTED: &str = "--- a process is started in phase ";

/// How often documents are changed, at most.
const ROUNDS: i32 = 4;

/// The id of the last documents that are written, or higher.
const LAST: i32 = 9999;

/// One mirror that dies at some points.
struct Case {
    /// Where its processes shall still die: the phase and the point, as in `1/Claim:before`.
    points: Vec<String>,
    phase: usize,
    database: String,
    manifest: Manifest,
    process: Process,
    deaths: Vec<String>,
}

impl Case {
    fn start(uri: &str, database: &str, points: Vec<String>) -> Self {
        let manifest = Manifest::new(uri, uri, &[]);
        hold(&manifest, Some(database));
        let points: Vec<String> = points.into_iter().chain([HALF_COPIED.to_owned()]).collect();
        let process = Self::process(&manifest, &points, 0);
        Self {
            points,
            phase: 0,
            database: database.to_owned(),
            manifest,
            process,
            deaths: Vec::new(),
        }
    }

    fn process(manifest: &Manifest, points: &[String], phase: usize) -> Process {
        manifest.note(&format!("{STARTED}{phase}"));
        let prefix = format!("{phase}/");
        let armed = points
            .iter()
            .filter_map(|point| point.strip_prefix(&prefix));
        let armed: Vec<&str> = armed.collect();
        manifest.run(&[
            ("MONGOMIRROR_CRASH", &armed.join(",")),
            ("MONGOMIRROR_RANGE_BYTES", "20000"),
            ("MONGOMIRROR_LANES_FROM", "2"),
            ("RUST_LOG", "info,crash_points=trace"),
        ])
    }

    /// Waits until something holds; starts the process again whenever it has died as it should.
    async fn until(&mut self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let since = Instant::now();
        while !holds().await {
            self.tend();
            self.be_patient(what, since);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn be_patient(&self, what: &str, since: Instant) {
        if since.elapsed() < PATIENCE {
            return;
        }
        let log = self.manifest.log();
        let lines = log.lines().filter(|line| !line.contains("crash_points"));
        let last: Vec<&str> = lines.rev().take(20).collect();
        let (deaths, last) = (&self.deaths, last.join("\n"));
        panic!("still not: {what}; died at {deaths:?}; the log backwards:\n{last}");
    }

    /// Starts the process again if it has died as it should.
    fn tend(&mut self) {
        let Some(status) = self.process.ended().expect("the process can be looked at") else {
            return;
        };
        assert_eq!(status.signal(), Some(SIGABRT), "it ended with {status}");
        assert!(self.note_death(), "a crash says where");
        self.restart();
    }

    /// What this phase should still meet.
    fn not_met(&self) -> Vec<String> {
        let prefix = format!("{}/", self.phase);
        let of_it = self.points.iter().filter(|it| it.starts_with(&prefix));
        let once = of_it.filter(|point| point.matches(':').count() == 1);
        once.cloned().collect()
    }

    /// Whether the last process has died where it was told to.
    fn note_death(&mut self) -> bool {
        let log = self.manifest.log();
        let own = log.rsplit(STARTED).next().unwrap_or_default();
        let mut lines = own.lines();
        let Some(died) = lines.find_map(|line| line.strip_prefix("crash point ")) else {
            return false;
        };
        let point = format!("{}/{}", self.phase, died.replace(' ', ":"));
        let mut armed = self.points.iter();
        let known = armed.position(|armed| armed.starts_with(&point));
        self.points.remove(known.expect("one of those it was told"));
        self.deaths.push(point);
        true
    }

    fn restart(&mut self) {
        self.process = Self::process(&self.manifest, &self.points, self.phase);
    }

    /// Ends a phase: what it should have met, it must have met. How often something is written can
    /// depend on the time; once it must be.
    async fn end_phase(&mut self) {
        let since = Instant::now();
        // What was waited for may be seen before the process has heard of it.
        while !self.not_met().is_empty() && since.elapsed() < HEARD {
            self.tend();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.process.kill().await.unwrap();
        self.note_death();
        let never = self.not_met();
        assert!(
            never.is_empty(),
            "the scenario never meets {never:?}: let it do what is written there"
        );
        self.phase += 1;
    }

    /// Ends the mirror for good, and lets it come back. A process that dies meanwhile does not end
    /// what it began; if it had not even begun, it is ended once more.
    async fn end_and_come_back(&mut self, client: &Client) {
        let database = self.database.clone();
        let current = async || checkpoint(client, &database).await.unwrap();
        let epoch = async || current().await.get_i64("epoch").unwrap();
        let is_armed = async || current().await.get_bool("armed").unwrap_or(false);
        loop {
            let (ended, deaths) = (self.log_holds(ENDED), self.deaths.len());
            hold(&self.manifest, None);
            self.until_log(ENDED, ended, deaths).await;
            let was_armed = is_armed().await;
            let before = epoch().await;
            hold(&self.manifest, Some(&database));
            self.until("it has taken over", async || epoch().await > before)
                .await;
            if was_armed {
                break;
            }
        }
        self.until("it is mirrored again", async || !is_armed().await)
            .await;
    }

    fn log_holds(&self, words: &str) -> usize {
        self.manifest.log().matches(words).count()
    }

    /// Waits until the log holds these words once more, or a process has died.
    async fn until_log(&mut self, words: &str, before: usize, deaths: usize) {
        let since = Instant::now();
        while self.log_holds(words) == before && self.deaths.len() == deaths {
            self.tend();
            self.be_patient(words, since);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// As if the process had died when it had just found its history lost, and somebody had
/// written to the target.
async fn begin_resync(client: &Client, target: &Database) {
    let copies = target.collection::<Document>("orders");
    let tampered = doc! {"$set": {"status": "tampered"}};
    copies.update_one(doc! {"_id": 11}, tampered).await.unwrap();
    let checkpoints = client
        .database("mongomirror")
        .collection::<Document>("checkpoints");
    let own = doc! {"_id": target.name()};
    checkpoints
        .update_one(own, doc! {"$set": {"resync": true}})
        .await
        .unwrap();
}

/// Lets the file hold the mirror of this database, or none; and always one that is switched off,
/// because a file without any is a mistake.
fn hold(manifest: &Manifest, database: Option<&str>) {
    let selection = format!("  collections: {{exclude: [\"{HIDDEN}\"]}}\n");
    match database {
        Some(database) => manifest.hold(&[database], &selection),
        None => manifest.hold(&["idle"], "  enabled: false\n"),
    }
}

/// The scenario, from nothing to equality; returns where it died.
async fn run_case(
    client: Client,
    uri: String,
    number: usize,
    points: Vec<String>,
) -> (Vec<String>, String) {
    let database = format!("case{number}");
    let (db, target) = (
        client.database(&database),
        client.database(&format!("{database}_backup")),
    );
    prepare(&db).await;
    let mut case = Case::start(&uri, &database, points);
    case.until("the copy is complete", async || {
        is_copied(&client, &database).await && enforces_seats(&target).await
    })
    .await;
    case.until("the copy is verified", async || {
        is_verified(&client, target.name()).await
    })
    .await;
    case.end_phase().await;
    case.restart();
    for round in 0..ROUNDS {
        // What had been written outside of transactions when a process died is read again by the
        // next one, and changes up to then are not written as such.
        if round > 0 && case.not_met().is_empty() {
            break;
        }
        refuse(&db, &target, round).await;
        change_documents(&db, &target, round).await;
        if round == 0 {
            change_collections(&db).await;
        }
        case.until("a document is refused", async || {
            refused(&client, target.name()).await > 0
        })
        .await;
        take(&target).await;
        equal(&mut case, &db, &target, LAST + round).await;
    }
    case.end_phase().await;
    let epoch = async || {
        let checkpoint = checkpoint(&client, &database).await.unwrap();
        checkpoint.get_i64("epoch").unwrap()
    };
    let before = epoch().await;
    case.restart();
    case.until("it has taken over", async || epoch().await > before)
        .await;
    case.end_and_come_back(&client).await;
    change_kinds(&db, 2000).await;
    equal(&mut case, &db, &target, LAST + ROUNDS).await;
    case.end_phase().await;
    begin_resync(&client, &target).await;
    case.restart();
    case.until("the resync is complete", async || {
        let checkpoint = checkpoint(&client, &database).await.unwrap();
        !checkpoint.get_bool("resync").unwrap() && is_copied(&client, &database).await
    })
    .await;
    equal(&mut case, &db, &target, LAST + ROUNDS + 1).await;
    case.end_phase().await;
    case.restart();
    let select = |manifest: &Manifest, more: &str| {
        let selection = format!("  collections: {{exclude: [\"{HIDDEN}\"{more}}}\n{IN_LANES}");
        manifest.hold(&[&database], &selection);
    };
    select(&case.manifest, ", orders], onDeselected: Drop");
    case.until("what is not selected is dropped", async || {
        let names = target.list_collection_names().await.unwrap();
        names.iter().all(|name| name != "orders")
    })
    .await;
    change_documents(&db, &target, ROUNDS).await;
    change_many(&db).await;
    // It may still be under way.
    select(&case.manifest, "]");
    equal(&mut case, &db, &target, LAST + ROUNDS + 2).await;
    case.end_phase().await;
    let log = case.manifest.log();
    assert!(!log.contains("panicked"), "the mirror panicked");
    let _ = tokio::join!(db.drop(), target.drop());
    (case.deaths, log)
}

async fn is_verified(client: &Client, target: &str) -> bool {
    let state = client.database("mongomirror");
    let verifications = state.collection::<Document>("verifications");
    let own = verifications.find_one(doc! {"_id": target}).await;
    own.expect("the target answers").is_some()
}

/// How many documents the target refuses.
async fn refused(client: &Client, target: &str) -> u64 {
    let state = client.database("mongomirror");
    let refused = state.collection::<Document>("quarantine");
    let own = refused.count_documents(doc! {"_id.t": target}).await;
    own.expect("the target answers")
}

/// Waits for a last write, and compares what is selected.
async fn equal(case: &mut Case, db: &Database, target: &Database, last: i32) {
    db.collection::<Document>("hidden").drop().await.unwrap();
    let orders = db.collection("orders");
    orders.insert_one(order(last)).await.unwrap();
    let copies = target.collection::<Document>("orders");
    case.until("the last write arrives", async || {
        copies.find_one(doc! {"_id": last}).await.unwrap().is_some()
    })
    .await;
    // What is copied anew meanwhile holds later documents, too.
    let client = db.client().clone();
    case.until("all is copied and taken", async || {
        is_copied(&client, db.name()).await && refused(&client, target.name()).await == 0
    })
    .await;
    // The process can also die while it makes the last index unique.
    case.until("indexes are as they should be", async || {
        definitions(db).await == definitions(target).await
    })
    .await;
    assert_equal(db, target).await;
}

/// How often each write was met in each phase, by the process that met it most often.
fn most_often(log: &str) -> [HashMap<String, u32>; PHASES] {
    let mut most: [HashMap<String, u32>; PHASES] = Default::default();
    for process in log.split(STARTED).skip(1) {
        let (phase, lines) = process.split_once('\n').expect("lines");
        let mut met: HashMap<&str, u32> = HashMap::new();
        for line in lines
            .lines()
            .filter(|line| line.contains("moment=\"before\""))
        {
            let mut words = line.split_whitespace();
            let written = words.find_map(|word| word.strip_prefix("write="));
            *met.entry(written.expect("its name")).or_default() += 1;
        }
        let most = &mut most[phase.parse::<usize>().expect("a phase")];
        for (write, times) in met {
            let before = most.entry(write.to_owned()).or_default();
            *before = times.max(*before);
        }
    }
    most
}

/// Cases of points to die at: every write, before and after the first time that it is met; and once
/// in each later phase, by chance. `MONGOMIRROR_TEST_CRASH` asks for every single time (`all`), or
/// for one point.
fn cases(met: &[HashMap<String, u32>; PHASES], seed: u64) -> Vec<Vec<String>> {
    let only = std::env::var("MONGOMIRROR_TEST_CRASH").ok();
    if let Some(only) = only.clone().filter(|only| only != "all") {
        return vec![only.split(',').map(str::to_owned).collect()];
    }
    let mut random = StdRng::seed_from_u64(seed);
    let named = |points: &&[&str]| points.iter().map(ToString::to_string).collect();
    let mut cases: Vec<Vec<String>> = FOUND.iter().map(named).collect();
    for write in Write::ALL {
        let name = format!("{write:?}");
        let times = |phase: usize| met[phase].get(&name).copied().unwrap_or(0);
        let first = (from(*write)..PHASES).find(|phase| times(*phase) > 0);
        let first = first.unwrap_or(0);
        let both = ["before", "after"];
        cases.push(both.map(|it| format!("{first}/{name}:{it}")).to_vec());
        for phase in first..PHASES {
            // How many batches there are depends on the time.
            let times = match is_of_a_batch(*write) {
                true => times(phase).min(1),
                false => times(phase),
            };
            if only.is_some() {
                for nth in 1..=times {
                    cases.extend(both.map(|it| vec![format!("{phase}/{name}:{it}:{nth}")]));
                }
            } else if times > u32::from(phase == first) {
                let moment = both[random.random_range(0..2)];
                let nth = random.random_range(1 + u32::from(phase == first)..=times);
                cases.push(vec![format!("{phase}/{name}:{moment}:{nth}")]);
            }
        }
    }
    together(cases)
}

/// Several cases become one, whose processes die more often: most of a case's time is not the
/// death. Points of one write are next to each other here, and stay apart.
fn together(cases: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let count = cases.len().div_ceil(TOGETHER).max(PHASES + 1);
    let mut few = vec![Vec::new(); count];
    for (number, points) in cases.into_iter().enumerate() {
        few[number % count].extend(points);
    }
    few
}

/// The first phase in which it is not chance that something is written: what a copy drops depends on
/// how far it was when its process died, and what it gives up on what else happens at that moment.
fn from(write: Write) -> usize {
    usize::from(matches!(
        write,
        Write::DropCollection | Write::RenameCollection | Write::Abort
    ))
}

fn is_of_a_batch(write: Write) -> bool {
    matches!(
        write,
        Write::WriteBatch
            | Write::CommitBatch
            | Write::MovePosition
            | Write::AnnounceLanes
            | Write::HoldLane
            | Write::CommitLane
            | Write::Abort
            | Write::FenceNote
            | Write::CommitNote
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_before_or_after_any_write_loses_nothing() {
    let seed = fresh_seed();
    println!("seed {seed}");
    let set = ReplicaSet::builder()
        .version(Version::V6_0_5)
        .cache_gb(0.5)
        .start()
        .await
        .unwrap();
    let (client, uri) = (set.client().await.unwrap(), set.uri());
    let begun = Instant::now();
    let (_, log) = run_case(client.clone(), uri.clone(), 0, Vec::new()).await;
    let cases = cases(&most_often(&log), seed);
    println!(
        "{} cases; {:.1} s",
        cases.len(),
        begun.elapsed().as_secs_f32()
    );
    let cases = cases.into_iter().zip(1..).map(|(points, number)| {
        let case = run_case(client.clone(), uri.clone(), number, points.clone());
        async move {
            let begun = Instant::now();
            let outcome = std::panic::AssertUnwindSafe(case).catch_unwind().await;
            let seconds = begun.elapsed().as_secs_f32();
            match &outcome {
                Ok((deaths, _)) => println!("{points:?}: equal after {deaths:?}, {seconds:.1} s"),
                Err(_) => println!("{points:?}: FAILED after {seconds:.1} s"),
            }
            outcome.is_err().then_some(points)
        }
    });
    let outcomes: Vec<_> = futures::stream::iter(cases)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failed: Vec<_> = outcomes.into_iter().flatten().collect();
    assert!(failed.is_empty(), "see above: {failed:?}");
}
