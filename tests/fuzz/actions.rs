//! Does what a plan says: writers beside each other, and at their places the breaker and the
//! observer.

use std::time::Duration;

use bson::{Bson, Document, RawDocumentBuf, doc};
use futures::TryStreamExt;
use futures::future::join_all;
use mongodb::{ClientSession, Database};
use testbed::ReplicaSet;
use tokio::sync::watch;

use crate::Result;
use crate::history::{self, Checked};
use crate::mirror::Mirror;
use crate::plan::{Action, Command, ELSEWHERE, Fault, Meddling, On, Plan, Step, Trouble, Who};
use crate::servers::{Databases, Servers, admin};
use crate::tally::Tally;

/// Longest time that a step may take. A server that is frozen or started again takes a few
/// seconds, more on a slow machine; what takes longer hangs.
const STEP: Duration = Duration::from_secs(300);

/// A step that hangs is shown with so many characters: documents may be large.
const SHOWN: usize = 2000;

/// Between two looks at an oplog that shall roll over.
const ROLL: Duration = Duration::from_millis(100);

/// What became of the steps.
#[derive(Default)]
pub struct Played {
    /// By kind.
    pub tally: Tally,
    /// Collections and documents that were compared with the source's past.
    pub compared: (usize, usize),
    /// Why nothing was compared, the last time that was so.
    pub unclear: Option<String>,
    /// Where the target was no state of the source.
    pub different: Option<String>,
}

/// A step at its place: so many steps of writers come before it.
type Placed<'a> = (usize, &'a Action);

/// Does the steps before the mirror is started.
pub async fn prepare(steps: &[&Step], databases: &Databases) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut session = databases.source.client().start_session().await?;
    for step in steps.iter().filter(|step| step.who == Who::Before) {
        perform(&step.action, databases, &mut session, &mut tally).await?;
    }
    Ok(tally)
}

/// Does all other steps.
pub async fn play(
    plan: &Plan,
    steps: &[&Step],
    servers: &Servers,
    databases: &Databases,
    mirror: &mut Mirror,
) -> Result<Played> {
    let mut writers: Vec<Vec<&Action>> = Vec::new();
    let (mut faults, mut checks): (Vec<Placed<'_>>, Vec<Placed<'_>>) = (Vec::new(), Vec::new());
    let mut before = 0;
    for step in steps {
        match step.who {
            Who::Before => {}
            Who::Writer(number) => {
                let number = number as usize;
                writers.resize_with(writers.len().max(number + 1), Vec::new);
                writers[number].push(&step.action);
                before += 1;
            }
            Who::Breaker => faults.push((before, &step.action)),
            Who::Observer => checks.push((before, &step.action)),
        }
    }
    let done = watch::Sender::new(0);
    let writing = writers
        .iter()
        .map(|steps| write(steps, plan.think, databases, &done));
    if plan.waits {
        mirror.planned().await;
    }
    let (written, broken, observed) = tokio::join!(
        join_all(writing),
        break_things(&faults, servers, databases, mirror, done.subscribe()),
        observe(&checks, databases, done.subscribe()),
    );
    let mut played = observed;
    played.tally += &broken?;
    for tally in written {
        played.tally += &tally?;
    }
    Ok(played)
}

async fn write(
    steps: &[&Action],
    think: Duration,
    databases: &Databases,
    done: &watch::Sender<usize>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut session = databases.source.client().start_session().await?;
    for step in steps {
        perform(step, databases, &mut session, &mut tally).await?;
        done.send_modify(|done| *done += 1);
        tokio::time::sleep(think).await;
    }
    Ok(tally)
}

/// Does one step of a writer. That a server refuses it is part of life; that it hangs is not.
async fn perform(
    action: &Action,
    databases: &Databases,
    session: &mut ClientSession,
    tally: &mut Tally,
) -> Result<()> {
    let work = async {
        match action {
            Action::Commands(commands) => {
                for command in commands {
                    let well = run(command, databases, None).await.is_ok();
                    tally.note(command.kind, well);
                }
            }
            Action::Transaction { commands, commit } => {
                let well = transaction(commands, *commit, databases, session)
                    .await
                    .is_ok();
                tally.note(
                    if *commit {
                        "transaction"
                    } else {
                        "aborted transaction"
                    },
                    well,
                );
            }
            Action::Fault(_) | Action::Check => {}
        }
    };
    let what = || {
        let shown: String = format!("{action:?}").chars().take(SHOWN).collect();
        format!("a step hung for {STEP:?}: {shown}")
    };
    Ok(tokio::time::timeout(STEP, work).await.map_err(|_| what())?)
}

async fn run(
    command: &Command,
    databases: &Databases,
    session: Option<&mut ClientSession>,
) -> Result<()> {
    let database = database_of(command.on, databases);
    let run = database.run_raw_command(command.body.clone());
    let reply = match session {
        Some(session) => run.session(session).await?,
        None => run.await?,
    };
    match reply.get("writeErrors") {
        None => Ok(()),
        Some(errors) => Err(errors.to_string().into()),
    }
}

fn database_of(on: On, databases: &Databases) -> Database {
    match on {
        On::Mirrored => databases.source.clone(),
        On::Elsewhere => databases.source.client().database(ELSEWHERE),
        On::Admin => admin(databases.source.client()),
    }
}

async fn transaction(
    commands: &[Command],
    commit: bool,
    databases: &Databases,
    session: &mut ClientSession,
) -> Result<()> {
    session.start_transaction().await?;
    for command in commands {
        if let Err(error) = run(command, databases, Some(session)).await {
            // The server has ended it already, or ends it with the next one.
            let _ = session.abort_transaction().await;
            return Err(error);
        }
    }
    if commit {
        session.commit_transaction().await?;
    } else {
        session.abort_transaction().await?;
    }
    Ok(())
}

/// Waits until so many steps of writers are done.
async fn until(place: usize, done: &mut watch::Receiver<usize>) {
    // The sender outlives all who wait.
    let _ = done.wait_for(|done| *done >= place).await;
}

async fn break_things(
    faults: &[Placed<'_>],
    servers: &Servers,
    databases: &Databases,
    mirror: &mut Mirror,
    mut done: watch::Receiver<usize>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    for (place, action) in faults {
        until(*place, &mut done).await;
        if let Action::Fault(fault) = action {
            let well = break_one(*fault, servers, databases, mirror).await?;
            tally.note(fault.kind(), well);
        }
    }
    Ok(tally)
}

/// Breaks one thing and mends it; errors are only those of the test itself.
async fn break_one(
    fault: Fault,
    servers: &Servers,
    databases: &Databases,
    mirror: &mut Mirror,
) -> Result<bool> {
    match fault {
        Fault::KillMirror(pause) => {
            mirror.kill().await?;
            tokio::time::sleep(pause).await;
            mirror.start()?;
        }
        Fault::PauseMirror(pause) => {
            mirror.stop().await?;
            tokio::time::sleep(pause).await;
            mirror.start()?;
        }
        Fault::FreezeMirror(pause) => {
            mirror.freeze(true).await?;
            tokio::time::sleep(pause).await;
            mirror.freeze(false).await?;
        }
        Fault::TakeOver(pause) => mirror.take_over(pause).await?,
        Fault::KillServer(side, pause) => {
            let set = servers.side(side);
            let node = set.node(set.wait_for_primary().await?);
            node.kill().await?;
            tokio::time::sleep(pause).await;
            node.restart().await?;
            settle(set).await?;
        }
        Fault::FreezeServer(side, pause) => {
            let set = servers.side(side);
            let node = set.node(set.wait_for_primary().await?);
            node.pause()?;
            tokio::time::sleep(pause).await;
            node.resume()?;
            settle(set).await?;
        }
        Fault::StepDown => {
            // Refused while no secondary has caught up.
            let well = servers.source().step_down().await.is_ok();
            settle(servers.source()).await?;
            return Ok(well);
        }
        Fault::KillSessions => {
            let admin = admin(databases.source.client());
            let command = doc! {"killAllSessions": []};
            return Ok(admin.run_command(command).await.is_ok());
        }
        Fault::Trouble(side, trouble, pause) => {
            let client = databases.side(side).client();
            let point = doc! {"configureFailPoint": "failCommand"};
            let mut on = point.clone();
            on.insert("mode", doc! {"activationProbability": 0.2});
            on.insert("data", data_of(trouble));
            let mut off = point;
            off.insert("mode", "off");
            admin(client).run_command(on).await?;
            tokio::time::sleep(pause).await;
            admin(client).run_command(off).await?;
        }
        Fault::LoseHistory => {
            mirror.stop().await?;
            roll_over(databases).await?;
            mirror.start()?;
        }
        Fault::Stranger(meddling, collection) => {
            // Before it is the mirror's, a target that is not empty is refused.
            let state = databases.target.client().database("mongomirror");
            let planned = doc! {"_id": databases.target.name(), "position": {"$exists": true}};
            let checkpoints = state.collection::<Document>("checkpoints");
            if checkpoints.find_one(planned).await?.is_none() {
                return Ok(false);
            }
            let mut command = meddle(meddling, collection);
            command.insert("writeConcern", doc! {"w": "majority"});
            if meddling != Meddling::DropIndexes {
                // A collection that the mirror does not know is one that it may have forgotten: it
                // stops then, and says so. So strangers make none.
                let Some(uuid) = uuid(&databases.target, collection).await? else {
                    return Ok(false);
                };
                command.insert("collectionUUID", uuid);
            }
            return Ok(databases.target.run_command(command).await.is_ok());
        }
        Fault::Sync(collection) => mirror.ask_for_sync(collection).await?,
    }
    Ok(true)
}

/// A collection's UUID, if it is there.
async fn uuid(database: &Database, name: &str) -> Result<Option<Bson>> {
    let list = doc! {"listCollections": 1, "filter": {"name": name}};
    let mut listed = database.run_cursor_command(list).await?;
    let listed = listed.try_next().await?;
    let info = listed.as_ref().and_then(|it| it.get_document("info").ok());
    Ok(info.and_then(|info| info.get("uuid")).cloned())
}

/// What somebody else runs on the target.
fn meddle(meddling: Meddling, collection: &str) -> Document {
    match meddling {
        Meddling::Delete => {
            let some = doc! {"q": {"n": {"$lt": 3}}, "limit": 0};
            doc! {"delete": collection, "deletes": [some, {"q": {}, "limit": 1}]}
        }
        Meddling::Change => {
            let some =
                doc! {"q": {"n": {"$gt": 5}}, "u": {"$set": {"stranger": true}}, "multi": true};
            let all = doc! {"update": collection, "updates": [some]};
            bypassing(all)
        }
        Meddling::Insert(number) => {
            let id = if number % 2 == 0 {
                Bson::from(number)
            } else {
                Bson::from(format!("stranger-{number}"))
            };
            let document = doc! {"_id": id, "seat": number, "stranger": true};
            bypassing(doc! {"insert": collection, "documents": [document]})
        }
        Meddling::DropIndexes => doc! {"dropIndexes": collection, "index": "*"},
        Meddling::BuildIndex => {
            let index = doc! {"key": {"stranger": 1}, "name": "stranger"};
            doc! {"createIndexes": collection, "indexes": [index]}
        }
    }
}

fn bypassing(mut command: Document) -> Document {
    command.insert("bypassDocumentValidation", true);
    command
}

/// Writes elsewhere until the source's oplog has lost everything that it had.
async fn roll_over(databases: &Databases) -> Result<()> {
    let client = databases.source.client();
    // Raw: documents of the source need not be readable.
    let oplog = client
        .database("local")
        .collection::<RawDocumentBuf>("oplog.rs");
    let end = async |order: i32| {
        let entry = oplog.find_one(doc! {}).sort(doc! {"$natural": order});
        let entry = entry.await?.ok_or("no oplog")?;
        Ok::<_, crate::Error>(entry.get_timestamp("ts")?)
    };
    let newest = end(-1).await?;
    let filler = client.database(ELSEWHERE).collection::<Document>("filler");
    let rolling = async {
        while end(1).await? <= newest {
            let documents = (0..40).map(|_| doc! {"text": "x".repeat(50_000)});
            filler.insert_many(documents).await?;
            tokio::time::sleep(ROLL).await;
        }
        Ok::<_, crate::Error>(())
    };
    let rolled = tokio::time::timeout(STEP, rolling).await;
    rolled.map_err(|_| "the oplog does not roll over")??;
    filler.drop().await?;
    Ok(())
}

/// What the fail point does to commands of the mirror.
fn data_of(trouble: Trouble) -> Document {
    // All that a mirror sends but the driver's own handshakes.
    const ALL: [&str; 17] = [
        "find",
        "getMore",
        "aggregate",
        "insert",
        "update",
        "delete",
        "findAndModify",
        "commitTransaction",
        "abortTransaction",
        "create",
        "drop",
        "renameCollection",
        "collMod",
        "createIndexes",
        "dropIndexes",
        "listCollections",
        "listIndexes",
    ];
    // Others have no write concern.
    const WRITES: [&str; 9] = [
        "insert",
        "update",
        "delete",
        "commitTransaction",
        "create",
        "drop",
        "collMod",
        "createIndexes",
        "dropIndexes",
    ];
    let mut data = match trouble {
        Trouble::Code(code) => doc! {"errorCode": code},
        Trouble::Close => doc! {"closeConnection": true},
        Trouble::Slow => doc! {"blockConnection": true, "blockTimeMS": 300},
        Trouble::WriteConcern => {
            doc! {"writeConcernError": {"code": 91, "errmsg": "shutting down"}}
        }
    };
    let commands = if trouble == Trouble::WriteConcern {
        &WRITES[..]
    } else {
        &ALL[..]
    };
    data.insert("failCommands", commands.to_vec());
    data.insert("appName", "mongomirror");
    data
}

async fn settle(set: &ReplicaSet) -> Result<()> {
    set.wait_until_settled().await?;
    Ok(())
}

async fn observe(
    checks: &[Placed<'_>],
    databases: &Databases,
    mut done: watch::Receiver<usize>,
) -> Played {
    let mut played = Played::default();
    for (place, _) in checks {
        until(*place, &mut done).await;
        let checked = history::check(databases).await;
        played
            .tally
            .note("check", matches!(checked, Checked::Same { .. }));
        match checked {
            Checked::Same {
                collections,
                documents,
            } => {
                played.compared.0 += collections;
                played.compared.1 += documents;
            }
            Checked::Unclear(why) => played.unclear = Some(why),
            Checked::Different(what) => {
                played.different.get_or_insert(what);
            }
        }
    }
    played
}
