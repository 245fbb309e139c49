//! What users ask for by annotations: both sides compared, documents put right.
//!
//! An annotation's value is its token: what it asks for is done once, its result stands in
//! `status.requests` beside the token, and another value asks again. What cannot be done yet, as
//! while the mirror is paused or copies, is asked again until it can.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bson::Document;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::conditions::truncated;
use crate::engine::progress::VerificationResult;
use crate::engine::request::{Refusal, Request, Synced, ask};
use crate::resource::status::{RequestKind, RequestState, RequestStatus};
use crate::runner::words;

/// What the annotations begin with.
pub const PREFIX: &str = "mongomirror.dev/";

/// Bytes of an annotation that asks for something: the status repeats it.
const LONGEST: usize = 1024;

/// Pause before a mirror is asked again for what it cannot do now.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What is told of a resync: it may take long, and the mirror itself shows how far it is.
const RESYNC_BEGUN: &str = "both sides are compared from the beginning, and made equal";

/// What is asked for, by kind: the values of the annotations.
pub type Wishes = BTreeMap<RequestKind, String>;

/// Reads the annotations of a resource.
pub fn wishes(annotations: Option<&BTreeMap<String, String>>) -> Wishes {
    let value = |kind: RequestKind| {
        let name = format!("{PREFIX}{}", kind.annotation());
        let value = annotations?.get(&name)?.trim();
        (!value.is_empty()).then(|| (kind, value.to_owned()))
    };
    RequestKind::ALL.into_iter().filter_map(value).collect()
}

/// The wishes of one resource, and how far each of them is.
#[derive(Default)]
pub struct Asked {
    held: BTreeMap<RequestKind, Held>,
}

/// One of them.
struct Held {
    /// The whole value of the annotation; the status may have less of it.
    wish: String,
    status: RequestStatus,
    stage: Stage,
}

enum Stage {
    /// The mirror is to be asked then.
    Waiting(Instant),
    /// It was asked.
    Running {
        answer: oneshot::Receiver<Outcome>,
        _task: AbortOnDropHandle<()>,
    },
    /// It has answered, or cannot be asked.
    Over,
}

/// What became of a wish.
enum Outcome {
    Done(String),
    Refused(String),
    /// Not now.
    Waits(String),
}

impl Asked {
    /// Asks a running mirror for what is wished and not done, and returns what is to be said of
    /// it; `written` is what the status says, also of the time of an earlier process.
    pub fn attend(
        &mut self,
        wishes: &Wishes,
        written: &[RequestStatus],
        mirror: Option<&mpsc::Sender<Request>>,
        now: Instant,
    ) -> Vec<RequestStatus> {
        self.held
            .retain(|kind, held| wishes.get(kind) == Some(&held.wish));
        for (kind, wish) in wishes {
            let held = self
                .held
                .entry(*kind)
                .or_insert_with(|| Held::new(*kind, wish, written, now));
            held.attend(mirror, now);
        }
        self.held.values().map(|held| held.status.clone()).collect()
    }
}

impl Held {
    fn new(kind: RequestKind, wish: &str, written: &[RequestStatus], now: Instant) -> Self {
        let token = wish[..wish.floor_char_boundary(LONGEST)].to_owned();
        let known = |one: &&RequestStatus| one.kind == kind && one.token == token;
        let status = match written.iter().find(known) {
            Some(known) => known.clone(),
            None => RequestStatus {
                kind,
                token,
                state: RequestState::Waiting,
                result: String::new(),
                time: Time(words::timestamp(SystemTime::now())),
            },
        };
        let stage = match status.state.is_over() {
            true => Stage::Over,
            false => Stage::Waiting(now),
        };
        Self {
            wish: wish.to_owned(),
            status,
            stage,
        }
    }

    fn attend(&mut self, mirror: Option<&mpsc::Sender<Request>>, now: Instant) {
        match &mut self.stage {
            Stage::Over => {}
            Stage::Waiting(at) if *at > now => {}
            Stage::Waiting(_) => self.ask(mirror, now),
            Stage::Running { answer, .. } => match answer.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => {}
                Ok(outcome) => self.came(outcome, now),
                // A mirror that is started anew drops the question.
                Err(oneshot::error::TryRecvError::Closed) => {
                    self.came(Outcome::Waits(Refusal::NotMirroring.to_string()), now);
                }
            },
        }
    }

    fn ask(&mut self, mirror: Option<&mpsc::Sender<Request>>, now: Instant) {
        let wish = match Wish::parse(self.status.kind, &self.wish) {
            Ok(wish) => wish,
            Err(why) => return self.came(Outcome::Refused(why), now),
        };
        let Some(mirror) = mirror.cloned() else {
            let why = match wish {
                Wish::Resync => Refusal::NotRunning,
                Wish::Verify | Wish::Sync(_) => Refusal::NotMirroring,
            };
            return self.came(Outcome::Waits(why.to_string()), now);
        };
        let (answered, answer) = oneshot::channel();
        let task = tokio::spawn(async move {
            // The annotation may have become another one meanwhile.
            let _ = answered.send(wish.carry_out(&mirror).await);
        });
        self.stage = Stage::Running {
            answer,
            _task: AbortOnDropHandle::new(task),
        };
        // What waited is told as such until it is known that it need not.
        if self.status.result.is_empty() {
            self.say(RequestState::Running, String::new());
        }
    }

    fn came(&mut self, outcome: Outcome, now: Instant) {
        let (stage, state, result) = match outcome {
            Outcome::Done(result) => (Stage::Over, RequestState::Done, result),
            Outcome::Refused(result) => (Stage::Over, RequestState::Refused, result),
            Outcome::Waits(result) => {
                let again = Stage::Waiting(now + ASK_AGAIN);
                (again, RequestState::Waiting, result)
            }
        };
        self.stage = stage;
        self.say(state, result);
    }

    fn say(&mut self, state: RequestState, result: String) {
        let result = truncated(result);
        if self.status.state != state || self.status.result != result {
            self.status.state = state;
            self.status.result = result;
            self.status.time = Time(words::timestamp(SystemTime::now()));
        }
    }
}

/// What an annotation says.
enum Wish {
    Verify,
    Resync,
    Sync(SyncWish),
}

/// The value of `mongomirror.dev/sync`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SyncWish {
    collection: String,
    /// A MongoDB filter, in extended JSON.
    filter: Document,
    /// Only makes the value another one.
    #[serde(rename = "token", default)]
    _token: Option<String>,
}

impl Wish {
    fn parse(kind: RequestKind, value: &str) -> Result<Self, String> {
        if value.len() > LONGEST {
            return Err(format!("the annotation is longer than {LONGEST} bytes"));
        }
        match kind {
            RequestKind::Verify => Ok(Self::Verify),
            RequestKind::Resync => Ok(Self::Resync),
            RequestKind::Sync => serde_json::from_str(value)
                .map(Self::Sync)
                .map_err(|error| {
                    format!(
                        "the annotation cannot be read ({error}): write JSON such as \
                     {{\"collection\": \"orders\", \"filter\": {{\"_id\": 7}}, \"token\": \"1\"}}"
                    )
                }),
        }
    }

    async fn carry_out(self, mirror: &mpsc::Sender<Request>) -> Outcome {
        let answered = match self {
            Self::Verify => ask(mirror, |done| Request::Verify { done })
                .await
                .map(verified),
            Self::Resync => ask(mirror, |done| Request::Resync { done })
                .await
                .map(|()| RESYNC_BEGUN.to_owned()),
            Self::Sync(SyncWish {
                collection, filter, ..
            }) => {
                let request = |done| Request::Sync {
                    collection,
                    filter,
                    done,
                };
                ask(mirror, request).await.map(synced)
            }
        };
        match answered {
            Ok(result) => Outcome::Done(result),
            Err(refusal @ (Refusal::NotMirroring | Refusal::NotRunning | Refusal::Copying(_))) => {
                Outcome::Waits(refusal.to_string())
            }
            Err(refusal) => Outcome::Refused(refusal.to_string()),
        }
    }
}

fn verified(result: VerificationResult) -> String {
    let documents = words::count(result.documents, "document", "documents");
    let differences = words::differences(result.differences, result.repaired);
    format!("{documents} compared, {differences}")
}

fn synced(synced: Synced) -> String {
    format!(
        "{} matched: {} written, {} deleted, {} unchanged, {} refused",
        synced.matched, synced.written, synced.deleted, synced.unchanged, synced.refused
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::position::ClusterTime;

    fn wished(kind: RequestKind, value: &str) -> Wishes {
        Wishes::from([(kind, value.to_owned())])
    }

    fn result() -> VerificationResult {
        VerificationResult {
            time: SystemTime::UNIX_EPOCH,
            consistent_at: ClusterTime::ZERO,
            collections: 1,
            documents: 7,
            bytes: 70,
            differences: 2,
            repaired: 2,
            duration: Duration::ZERO,
            definitions: Vec::new(),
        }
    }

    /// Attends until nothing runs.
    async fn settled(
        asked: &mut Asked,
        wishes: &Wishes,
        written: &[RequestStatus],
        mirror: Option<&mpsc::Sender<Request>>,
    ) -> RequestStatus {
        loop {
            let now = Instant::now();
            let said = asked.attend(wishes, written, mirror, now).remove(0);
            if said.state != RequestState::Running {
                return said;
            }
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn annotations_of_others_ask_for_nothing() {
        let annotation = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let all = BTreeMap::from([
            annotation("mongomirror.dev/verify", " 1 "),
            annotation("mongomirror.dev/sync", ""),
            annotation("example.com/verify", "2"),
        ]);
        assert_eq!(wishes(Some(&all)), wished(RequestKind::Verify, "1"));
        assert_eq!(wishes(None), Wishes::new());
    }

    #[tokio::test]
    async fn a_wish_is_carried_out_once_for_each_token() {
        let (mirror, mut requests) = mpsc::channel(4);
        let answering = tokio::spawn(async move {
            let mut count = 0;
            while let Some(request) = requests.recv().await {
                count += 1;
                match request {
                    Request::Verify { done } => done.send(Ok(result())).unwrap(),
                    other => panic!("not asked for: {other:?}"),
                }
            }
            count
        });
        let mut asked = Asked::default();
        let first = wished(RequestKind::Verify, "1");
        let said = settled(&mut asked, &first, &[], Some(&mirror)).await;
        assert_eq!(said.state, RequestState::Done);
        assert!(said.result.starts_with("7 documents"), "{}", said.result);
        // Nor by a process that finds it in the status.
        for asked in [&mut asked, &mut Asked::default()] {
            let written = std::slice::from_ref(&said);
            let again = asked.attend(&first, written, Some(&mirror), Instant::now());
            assert_eq!(again, written);
        }
        let second = wished(RequestKind::Verify, "2");
        let written = [said];
        let said = settled(&mut asked, &second, &written, Some(&mirror)).await;
        assert_eq!((said.token.as_str(), said.state), ("2", RequestState::Done));
        drop((asked, mirror));
        assert_eq!(answering.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_refused_with_an_example() {
        let mut asked = Asked::default();
        for value in [
            "{}",
            "now",
            r#"{"collection": "c", "filter": {}, "all": 1}"#,
        ] {
            let wishes = wished(RequestKind::Sync, value);
            let said = settled(&mut asked, &wishes, &[], None).await;
            assert_eq!(said.state, RequestState::Refused, "{value}");
            assert!(said.result.contains(r#""filter""#), "{}", said.result);
        }
        let long = wished(RequestKind::Sync, &"x".repeat(LONGEST + 1));
        let said = settled(&mut asked, &long, &[], None).await;
        assert_eq!(said.state, RequestState::Refused);
        assert_eq!(said.token.len(), LONGEST);
    }

    #[tokio::test]
    async fn what_cannot_be_done_now_waits_and_is_asked_again() {
        let mut asked = Asked::default();
        let wishes = wished(RequestKind::Verify, "1");
        let said = settled(&mut asked, &wishes, &[], None).await;
        assert_eq!(said.state, RequestState::Waiting);
        assert!(said.result.contains("Mirroring"), "{}", said.result);
        let (mirror, mut requests) = mpsc::channel(4);
        let same = asked.attend(&wishes, &[], Some(&mirror), Instant::now());
        assert_eq!(same, [said], "it is not asked all the time");
        let later = Instant::now() + ASK_AGAIN;
        asked.attend(&wishes, &[], Some(&mirror), later);
        let Some(Request::Verify { done }) = requests.recv().await else {
            panic!("not asked");
        };
        done.send(Ok(result())).unwrap();
        while asked.attend(&wishes, &[], Some(&mirror), later)[0].state != RequestState::Done {
            tokio::task::yield_now().await;
        }
    }
}
