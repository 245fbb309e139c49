//! Leadership: of several operators one runs the mirrors, the others stand by.
//!
//! A Lease says who leads. Clocks of different machines are not compared: a standby takes over when
//! it has not seen the Lease change for as long as the Lease says, by its own clock; the leader
//! counts from before it sent its last renewal, and has stopped well before that. Should both run
//! even so, as when a process was frozen, the fencing epoch on the target lets only the newer one
//! write (`engine/state`).

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::crash;
use crate::runner::readiness::Readiness;
use crate::runner::words;

/// A Lease that was not renewed for so long may be taken.
const DURATION: Duration = Duration::from_secs(9);
/// The leader renews it this often.
const RENEW: Duration = Duration::from_secs(2);
/// It tries again so soon after it could not.
const RETRY: Duration = Duration::from_millis(500);
/// A leader that could not renew it for so long stops its mirrors.
const DEADLINE: Duration = Duration::from_secs(6);
/// Mirrors that have not stopped after so long are ended with the process, before another operator
/// may begin.
const STOP: Duration = Duration::from_millis(2500);
/// A standby looks this often.
const LOOK: Duration = Duration::from_secs(1);
/// Longest wait for the API server.
const REQUEST: Duration = Duration::from_millis(1500);

/// The operator must not go on.
#[derive(Debug, Error)]
pub enum LeaseError {
    /// Leadership is lost, and the mirrors did not stop in time.
    #[error(
        "the Lease {name} is lost, and mirrors did not stop within {} ms: another operator may run \
         them now",
        STOP.as_millis()
    )]
    NotStopped {
        /// The Lease's name.
        name: String,
    },
}

/// Where operators agree on who leads.
pub struct Election {
    leases: Api<Lease>,
    namespace: String,
    name: String,
    me: String,
}

/// What was seen of the Lease, and since when it has not changed.
#[derive(Clone, Debug)]
struct Seen {
    lease: Lease,
    since: Instant,
}

/// What to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Create,
    Take,
    Wait,
}

/// Why the Lease was not renewed.
enum NotRenewed {
    /// Somebody else holds it.
    Taken,
    Failed(String),
}

impl Seen {
    fn spec(&self) -> LeaseSpec {
        self.lease.spec.clone().unwrap_or_default()
    }

    fn holder(&self) -> Option<String> {
        let holder = self.spec().holder_identity;
        holder.filter(|holder| !holder.is_empty())
    }
}

fn decide(seen: Option<&Seen>, now: Instant) -> Step {
    let Some(seen) = seen else {
        return Step::Create;
    };
    if seen.holder().is_none() {
        return Step::Take;
    }
    let seconds = seen.spec().lease_duration_seconds;
    let duration = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let duration = duration.map_or(DURATION, Duration::from_secs);
    if now.duration_since(seen.since) >= duration {
        Step::Take
    } else {
        Step::Wait
    }
}

impl Election {
    /// In this namespace, or the client's own.
    pub fn new(client: Client, namespace: Option<String>, name: String) -> Self {
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "operator".to_owned());
        Self {
            leases: Api::namespaced(client, &namespace),
            namespace,
            name,
            // Of two processes with one host name each is somebody else.
            me: format!("{host}_{:08x}", rand::random::<u32>()),
        }
    }

    /// Works whenever this operator leads, until `stop`; `readiness` tells meanwhile that it stands
    /// by. The work ends when its token is cancelled.
    ///
    /// # Errors
    /// [`LeaseError`]: the process has to end.
    pub async fn lead(
        &self,
        readiness: &watch::Sender<Readiness>,
        stop: &CancellationToken,
        mut work: impl AsyncFnMut(CancellationToken),
    ) -> Result<(), LeaseError> {
        loop {
            let mut held = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                held = self.acquire(readiness) => held,
            };
            tracing::info!(lease = self.name, me = self.me, "leading");
            readiness.send_replace(Readiness::Starting);
            let term = stop.child_token();
            let mut running = std::pin::pin!(work(term.clone()));
            let is_lost = tokio::select! {
                () = &mut running => false,
                () = self.renew(&mut held) => true,
            };
            if !is_lost {
                self.release(held).await;
                return Ok(());
            }
            tracing::warn!(lease = self.name, "the Lease is lost; stopping the mirrors");
            readiness.send_replace(Readiness::Standby { leader: None });
            term.cancel();
            if timeout(STOP, running).await.is_err() {
                let name = format!("{}/{}", self.namespace, self.name);
                return Err(LeaseError::NotStopped { name });
            }
        }
    }

    /// Waits until the Lease is ours.
    async fn acquire(&self, readiness: &watch::Sender<Readiness>) -> (Lease, Instant) {
        let mut seen: Option<Seen> = None;
        let mut told = String::new();
        loop {
            match self.look(&mut seen).await {
                Ok(Some(held)) => return held,
                Ok(None) => {
                    told.clear();
                    let leader = seen.as_ref().and_then(Seen::holder);
                    let standby = Readiness::Standby { leader };
                    if readiness.send_replace(standby.clone()) != standby {
                        tracing::info!(lease = self.name, me = self.me, ?standby, "standing by");
                    }
                }
                Err(error) if error != told => {
                    tracing::warn!(
                        lease = format!("{}/{}", self.namespace, self.name),
                        error,
                        "cannot find out who leads; trying again"
                    );
                    told = error;
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK.mul_f64(rand::random_range(0.8..=1.2))).await;
        }
    }

    /// Looks at the Lease, and takes it if it is free.
    async fn look(&self, seen: &mut Option<Seen>) -> Result<Option<(Lease, Instant)>, String> {
        let there = in_time(self.leases.get_opt(&self.name)).await?;
        let now = Instant::now();
        *seen = there.map(|lease| match seen.take() {
            Some(before) if before.lease.spec == lease.spec => Seen {
                lease,
                since: before.since,
            },
            _ => Seen { lease, since: now },
        });
        let asked = Instant::now();
        let taken = match (decide(seen.as_ref(), now), seen.as_ref()) {
            // It may have been lost for want of an answer, and be ours still.
            (Step::Wait, Some(seen)) if self.is_mine(&seen.lease) => {
                self.replace(&seen.lease, renewed(&seen.lease)).await
            }
            (Step::Wait, _) => return Ok(None),
            (Step::Take, Some(seen)) => self.replace(&seen.lease, self.taken(&seen.spec())).await,
            (Step::Create | Step::Take, _) => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.taken(&LeaseSpec::default())),
                };
                let created = in_time(self.leases.create(&PostParams::default(), &lease)).await;
                crash::written();
                created
            }
        };
        // Whoever was faster shows at the next look.
        taken.map(|lease| Some((lease, asked)))
    }

    /// Renews the Lease until it is lost.
    async fn renew(&self, (lease, renewed): &mut (Lease, Instant)) {
        let mut pause = RENEW;
        // The next try must end before the deadline, too.
        while renewed.elapsed() + pause + REQUEST <= DEADLINE {
            tokio::time::sleep(pause).await;
            let asked = Instant::now();
            let renewed_once = timeout(REQUEST, self.renew_once(lease)).await;
            match renewed_once.unwrap_or_else(|_| Err(NotRenewed::Failed(no_answer()))) {
                Ok(()) => (*renewed, pause) = (asked, RENEW),
                Err(NotRenewed::Taken) => return,
                Err(NotRenewed::Failed(error)) => {
                    tracing::warn!(lease = self.name, error, "the Lease was not renewed");
                    pause = RETRY;
                }
            }
        }
    }

    async fn renew_once(&self, lease: &mut Lease) -> Result<(), NotRenewed> {
        if let Ok(now) = self.replace(lease, renewed(lease)).await {
            *lease = now;
            return Ok(());
        }
        // Somebody may have annotated it, or an earlier renewal was carried out after all.
        let there = in_time(self.leases.get_opt(&self.name)).await;
        let there = there.map_err(NotRenewed::Failed)?;
        *lease = there
            .filter(|there| self.is_mine(there))
            .ok_or(NotRenewed::Taken)?;
        let now = self.replace(lease, renewed(lease)).await;
        *lease = now.map_err(NotRenewed::Failed)?;
        Ok(())
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_ref());
        holder == Some(&self.me)
    }

    /// The mirrors have stopped: the next operator need not wait.
    async fn release(&self, (lease, _): (Lease, Instant)) {
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            ..renewed(&lease)
        };
        match self.replace(&lease, spec).await {
            Ok(_) => tracing::info!(lease = self.name, "the Lease is free"),
            Err(error) => tracing::warn!(lease = self.name, error, "the Lease was not given back"),
        }
    }

    fn taken(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            acquire_time: Some(now.clone()),
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(1)),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    /// Refused by the API server if the Lease has changed since it was read.
    async fn replace(&self, read: &Lease, spec: LeaseSpec) -> Result<Lease, String> {
        let lease = Lease {
            metadata: read.metadata.clone(),
            spec: Some(spec),
        };
        let replace = PostParams::default();
        let replaced = in_time(self.leases.replace(&self.name, &replace, &lease)).await;
        crash::written();
        replaced
    }
}

/// The same holder, as of now.
fn renewed(lease: &Lease) -> LeaseSpec {
    LeaseSpec {
        renew_time: Some(MicroTime(Timestamp::now())),
        ..lease.spec.clone().unwrap_or_default()
    }
}

async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(REQUEST, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(kube::Error::Api(status))) if status.is_forbidden() => Err(format!(
            "{}: the operator's service account needs get, create and update on leases",
            status.message
        )),
        Ok(Err(error)) => Err(words::root_cause(&error)),
        Err(_) => Err(no_answer()),
    }
}

fn no_answer() -> String {
    format!("no answer within {} ms", REQUEST.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: Option<&str>, seconds: Option<i32>, since: Instant) -> Seen {
        Seen {
            lease: Lease {
                spec: Some(LeaseSpec {
                    holder_identity: holder.map(str::to_owned),
                    lease_duration_seconds: seconds,
                    ..LeaseSpec::default()
                }),
                ..Lease::default()
            },
            since,
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_has_not_changed_for_as_long_as_it_says() {
        let since = Instant::now();
        let after = |seconds| since + Duration::from_secs(seconds);
        assert_eq!(decide(None, since), Step::Create);
        for free in [None, Some("")] {
            let seen = seen(free, Some(10), since);
            assert_eq!(decide(Some(&seen), since), Step::Take);
        }
        let held = seen(Some("a"), Some(7), since);
        assert_eq!(decide(Some(&held), after(6)), Step::Wait);
        assert_eq!(decide(Some(&held), after(7)), Step::Take);
        for odd in [None, Some(-1)] {
            let held = seen(Some("a"), odd, since);
            assert_eq!(decide(Some(&held), after(8)), Step::Wait);
            assert_eq!(decide(Some(&held), after(9)), Step::Take);
        }
    }

    #[test]
    fn a_leader_has_stopped_before_another_may_begin() {
        assert!(DEADLINE + STOP < DURATION);
        // It may fail to answer once, even slowly.
        assert!(RENEW + REQUEST + RETRY + REQUEST <= DEADLINE);
    }
}
