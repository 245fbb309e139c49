//! Mirrors that meet errors of a server side by side.

use bson::{Document, doc};
use mongodb::Database;
use mongomirror::engine::config::MirrorConfig;
use mongomirror::engine::error::Side;
use mongomirror::engine::selection::Selection;
use mongomirror::runner::MirrorHandle;
use testbed::ReplicaSet;
use tokio::sync::Mutex;

use super::faults::healed;
use super::{ask_to_verify, assert_equal, caught_up, config, fresh_seed, mirroring, rename};

/// Codes of errors that pass, and of errors that need somebody; the mirror has to outlive all of
/// them. Those that a command takes for an answer are left out for that command.
const CODES: [i32; 44] = [
    1, 6, 7, 8, 11, 24, 43, 46, 50, 63, 64, 79, 89, 91, 96, 112, 117, 133, 134, 146, 189, 202, 225,
    239, 246, 251, 262, 263, 290, 9001, 10107, 11600, 11601, 11602, 13435, 14031, 150, 234, 358,
    384, 13388, 13436, 175, 237,
];

/// Codes of write concerns that were not reached.
const UNCERTAIN: [i32; 4] = [64, 91, 189, 11602];

/// Commands that wait for a majority.
const WAITING: [&str; 9] = [
    "commitTransaction",
    "create",
    "createIndexes",
    "drop",
    "dropIndexes",
    "collMod",
    "findAndModify",
    "renameCollection",
    "update",
];

/// Mirrors that meet errors at the same time.
const VICTIMS: usize = 8;

/// What makes a mirror send a command.
#[derive(Clone, Copy)]
pub enum Cause {
    /// Documents are written.
    Write,
    /// Documents of a capped collection are written, which no transaction may do.
    Capped,
    /// A document of the target is not as it should be.
    Repair,
    /// The same, found by a verification.
    Mended,
    /// A collection is made, and dropped.
    Made,
    /// A collection is renamed over another one.
    Rename,
    /// An index is built, and dropped.
    Index,
    /// A collection joins and is copied.
    Copy,
    /// A collection's options change.
    Options,
    /// A clustered collection becomes capped.
    Converted,
    /// Somebody asks for a verification.
    Verification,
    /// A mirror starts.
    Start,
}

/// An error that a command meets once.
#[derive(Clone, Copy, Debug)]
enum Failure {
    /// It is not carried out.
    Refused(i32),
    /// It is carried out, but not by a majority in time.
    Uncertain(i32),
}

/// One of the mirrors that meet errors side by side.
struct Victim {
    config: MirrorConfig,
    mirror: Option<MirrorHandle>,
    source: Database,
    target: Database,
    step: i32,
    last: i32,
}

impl Victim {
    async fn start(number: usize, source: &ReplicaSet, target: &ReplicaSet) -> Self {
        let name = format!("victim{number}");
        let named = |set: &ReplicaSet| format!("{}&appName={name}", set.uri());
        let mut config = config(&named(source), &named(target), &name);
        config.selection = Selection::new(Vec::new(), vec!["hidden".into()]).expect("a name");
        config.limits.range_bytes = 4000;
        let (client, copy) = (
            source.client().await.unwrap(),
            target.client().await.unwrap(),
        );
        let db = client.database(&name);
        super::fill(&db, "orders", 0, 20).await;
        let ring = doc! {"create": "ring", "capped": true, "size": 20_000};
        db.run_command(ring).await.unwrap();
        let first = doc! {"insert": "ring", "documents": [{"_id": -1}]};
        db.run_command(first).await.unwrap();
        let mirror = MirrorHandle::start(config.clone());
        mirroring(&mirror).await;
        Self {
            target: copy.database(&config.target.database),
            config,
            mirror: Some(mirror),
            source: db,
            step: 0,
            last: 0,
        }
    }

    fn name(&self) -> &str {
        self.source.name()
    }

    async fn stop(&mut self) {
        if let Some(mirror) = self.mirror.take() {
            mirror.stop().await;
        }
    }

    async fn rename(&self, from: &str, to: &str) {
        let named = |collection: &str| format!("{}.{collection}", self.name());
        rename(self.source.client(), &named(from), &named(to)).await;
    }

    /// Does what somebody else might at the target.
    async fn damage(&self) {
        let copies = self.target.collection::<Document>("orders");
        copies.delete_one(doc! {"_id": 1}).await.unwrap();
    }

    /// Has both sides compared, and what differs put right.
    async fn verified(&self) {
        let mirror = self.mirror.as_ref().unwrap();
        super::eventually("both sides are compared", async || {
            ask_to_verify(mirror).await.await.ok()?.ok()
        })
        .await;
    }

    /// Lets the mirror meet the failure, and go on.
    async fn meet(
        &mut self,
        failure: Failure,
        command: &str,
        cause: Cause,
        points: &Mutex<Database>,
    ) {
        // A mirror that starts anew has the shortest pauses.
        self.stop().await;
        if !matches!(cause, Cause::Start) {
            let mirror = MirrorHandle::start(self.config.clone());
            mirroring(&mirror).await;
            self.mirror = Some(mirror);
        }
        {
            let admin = points.lock().await;
            let mut data = doc! {"appName": self.name(), "failCommands": [command]};
            match failure {
                Failure::Refused(code) => data.insert("errorCode", code),
                Failure::Uncertain(code) => data.insert(
                    "writeConcernError",
                    doc! {"code": code, "errmsg": "by the test"},
                ),
            };
            let fail =
                doc! {"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": data};
            let count = admin
                .run_command(fail)
                .await
                .unwrap()
                .get_i32("count")
                .unwrap();
            match cause {
                Cause::Start => self.mirror = Some(MirrorHandle::start(self.config.clone())),
                cause => self.cause(cause).await,
            }
            let hit = doc! {
                "waitForFailPoint": "failCommand",
                "timesEntered": count + 1,
                "maxTimeMS": 20_000,
            };
            let hit = admin.run_command(hit).await;
            assert!(hit.is_ok(), "{command} is not sent: {hit:?}");
            let off = doc! {"configureFailPoint": "failCommand", "mode": "off"};
            admin.run_command(off).await.unwrap();
        }
        let mirror = self.mirror.as_ref().unwrap();
        healed(
            mirror,
            self.source.client(),
            self.target.client(),
            self.name(),
        )
        .await;
    }

    /// Does what makes the mirror send the command.
    async fn cause(&mut self, cause: Cause) {
        self.step += 1;
        let n = self.step;
        let run = async |command: Document| {
            self.source.run_command(command).await.unwrap();
        };
        match cause {
            Cause::Start => {}
            Cause::Verification | Cause::Mended => {
                if matches!(cause, Cause::Mended) {
                    self.damage().await;
                }
                drop(ask_to_verify(self.mirror.as_ref().unwrap()).await);
            }
            Cause::Write | Cause::Repair => {
                if matches!(cause, Cause::Repair) {
                    self.damage().await;
                }
                let orders = self.source.collection::<Document>("orders");
                orders.insert_one(doc! {"_id": 1000 + n}).await.unwrap();
                orders
                    .update_one(doc! {"_id": 1}, doc! {"$set": {"n": n}})
                    .await
                    .unwrap();
                orders.delete_one(doc! {"_id": self.last}).await.unwrap();
                self.last = 1000 + n;
            }
            Cause::Capped => {
                let ring = self.source.collection::<Document>("ring");
                let documents = (0..3).map(|m| doc! {"_id": 3 * n + m, "text": "x".repeat(100)});
                ring.insert_many(documents).await.unwrap();
                ring.update_one(doc! {"_id": 3 * n}, doc! {"$set": {"n": n}})
                    .await
                    .unwrap();
                // The oldest: what is inserted and deleted at once is not written at all.
                let oldest = ring.find_one_and_delete(doc! {}).await.unwrap();
                assert!(oldest.unwrap().get_i32("_id").unwrap() < 3 * n);
            }
            Cause::Copy => {
                let hidden = self.source.collection::<Document>("hidden");
                let documents = (0..100).map(|n| doc! {"_id": n, "text": "x".repeat(200)});
                hidden.insert_many(documents).await.unwrap();
                run(doc! {"createIndexes": "hidden", "indexes": [{"key": {"n": 1}, "name": "n"}]})
                    .await;
                self.rename("hidden", "copied").await;
            }
            Cause::Rename => {
                run(doc! {"create": format!("from{n}")}).await;
                self.rename(&format!("from{n}"), "to").await;
            }
            Cause::Options => {
                run(doc! {"collMod": "orders", "validator": {"_id": {"$ne": -n}}}).await;
            }
            Cause::Index => {
                let index = doc! {"key": {format!("f{n}"): 1}, "name": "f"};
                run(doc! {"createIndexes": "orders", "indexes": [index]}).await;
                run(doc! {"dropIndexes": "orders", "index": "f"}).await;
            }
            Cause::Converted => {
                let clustered = doc! {"key": {"_id": 1}, "unique": true};
                run(doc! {"create": "made", "clusteredIndex": clustered}).await;
                run(doc! {"convertToCapped": "made", "size": 4096}).await;
                run(doc! {"drop": "made"}).await;
            }
            Cause::Made => {
                run(doc! {"create": "made"}).await;
                run(doc! {"drop": "made"}).await;
            }
        }
    }
}

/// All of a table, or what the seed picks of it: with `MONGOMIRROR_TEST_ALL` set, all.
fn picked(number: usize, seed: u64) -> bool {
    const ONE_OF: u64 = 4;
    std::env::var_os("MONGOMIRROR_TEST_ALL").is_some()
        || (number as u64 + seed).is_multiple_of(ONE_OF)
}

/// Lets mirrors meet each error of a table that commands to one side can meet.
pub async fn errors_are_survived(side: Side, commands: &[(&str, Cause)]) {
    let seed = fresh_seed();
    eprintln!("seed {seed}");
    let source = ReplicaSet::builder().start().await.unwrap();
    let target = ReplicaSet::builder().start().await.unwrap();
    let failing = match side {
        Side::Source => &source,
        Side::Target => &target,
    };
    let points = Mutex::new(failing.client().await.unwrap().database("admin"));
    let refused = CODES.iter().map(|code| Failure::Refused(*code));
    let uncertain = UNCERTAIN.iter().map(|code| Failure::Uncertain(*code));
    let failures: Vec<Failure> = refused.chain(uncertain).collect();
    let mut cases = Vec::new();
    for (f, failure) in failures.iter().enumerate() {
        for (c, (command, cause)) in commands.iter().enumerate() {
            let is_outside = matches!(cause, Cause::Capped);
            let waits = side == Side::Target && (is_outside || WAITING.contains(command));
            let can_be = matches!(failure, Failure::Refused(_)) || waits;
            if can_be && picked(f + c, seed) {
                cases.push((*failure, *command, *cause));
            }
        }
    }
    eprintln!(
        "{} of {} cases",
        cases.len(),
        failures.len() * commands.len()
    );
    let cases = Mutex::new(cases);
    let victims = (0..VICTIMS).map(|number| {
        let (cases, points, source, target) = (&cases, &points, &source, &target);
        async move {
            let mut victim = Victim::start(number, source, target).await;
            loop {
                let Some((failure, command, cause)) = cases.lock().await.pop() else {
                    break;
                };
                eprintln!("{command}: {failure:?}");
                victim.meet(failure, command, cause, points).await;
            }
            let mirror = victim.mirror.as_ref().unwrap();
            caught_up(mirror, victim.source.client()).await;
            // An error may have kept one from putting right what somebody else has done.
            victim.verified().await;
            assert_equal(&victim.source, &victim.target).await;
            victim.stop().await;
        }
    });
    futures::future::join_all(victims).await;
}
