//! What many want to know again and again is asked once for all of them.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Answers that are kept for a listener that does something else meanwhile.
const KEPT: usize = 240;

/// Who begins to listen waits for so much of the time between two questions at most: every answer
/// wakes all who listen, so of a thousand that begin not each can have one of its own.
const LEAST: f64 = 0.5;

/// A question that is asked as long as somebody listens.
pub struct Pulse<T>(Mutex<Weak<Asking<T>>>);

struct Asking<T> {
    /// The task has the other end.
    answers: broadcast::WeakSender<T>,
    wanted: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

/// Hears the answers.
pub struct Listener<T> {
    answers: broadcast::Receiver<T>,
    /// The asking ends with the last one who holds it.
    _asking: Arc<Asking<T>>,
}

impl<T> Default for Pulse<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone + Send + 'static> Pulse<T> {
    /// Listens from now on. The question is asked soon, for all who begin about now, and then
    /// `every` so often; the first listener's question is everybody's.
    pub fn listen<Answer>(
        &self,
        every: Duration,
        question: impl Fn() -> Answer + Send + 'static,
    ) -> Listener<T>
    where
        Answer: Future<Output = T> + Send + 'static,
    {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asking) = current.upgrade()
            && let Some(answers) = asking.answers.upgrade()
        {
            asking.wanted.notify_one();
            return Listener {
                answers: answers.subscribe(),
                _asking: asking,
            };
        }
        let (sender, answers) = broadcast::channel(KEPT);
        let wanted = Arc::new(Notify::new());
        let asking = Arc::new(Asking {
            answers: sender.downgrade(),
            wanted: wanted.clone(),
            _task: AbortOnDropHandle::new(tokio::spawn(ask(every, wanted, sender, question))),
        });
        *current = Arc::downgrade(&asking);
        Listener {
            answers,
            _asking: asking,
        }
    }
}

async fn ask<T, Answer: Future<Output = T>>(
    every: Duration,
    wanted: Arc<Notify>,
    answers: broadcast::Sender<T>,
    question: impl Fn() -> Answer,
) {
    loop {
        let asked = Instant::now();
        // Nobody may listen just now: the task ends with the last listener, not here.
        let _ = answers.send(question().await);
        tokio::select! {
            () = tokio::time::sleep_until(asked + every) => {}
            () = wanted.notified() => {
                tokio::time::sleep_until(asked + every.mul_f64(LEAST)).await;
            }
        }
    }
}

impl<T: Clone> Listener<T> {
    /// The next answer to a question that was asked since this one listens, or was under way then.
    /// Of those that were not heard in time the newest are kept. May be cut off at any point.
    pub async fn next(&mut self) -> T {
        loop {
            match self.answers.recv().await {
                Ok(answer) => return answer,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // Its task panicked: the lag is unknown soon, and whoever comes next asks anew.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn counted(pulse: &Pulse<usize>, count: &Arc<AtomicUsize>) -> Listener<usize> {
        let count = count.clone();
        pulse.listen(Duration::from_secs(1), move || {
            let nth = count.fetch_add(1, Ordering::Relaxed);
            async move { nth }
        })
    }

    #[tokio::test(start_paused = true)]
    async fn all_hear_the_answer_to_one_question() {
        let (pulse, count) = (Pulse::default(), Arc::default());
        let mut all: Vec<_> = (0..100).map(|_| counted(&pulse, &count)).collect();
        for listener in &mut all {
            assert_eq!(listener.next().await, 0);
        }
        tokio::time::sleep(Duration::from_millis(9_500)).await;
        let asked = count.load(Ordering::Relaxed);
        assert!((9..=11).contains(&asked), "{asked}");
        // Nothing is lost on who did not listen for a while.
        for nth in 1..asked {
            assert_eq!(all[7].next().await, nth);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_later_does_not_wait() {
        let (pulse, count) = (Pulse::default(), Arc::default());
        let mut first = counted(&pulse, &count);
        first.next().await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        let came = Instant::now();
        let mut second = counted(&pulse, &count);
        assert_eq!(second.next().await, 1);
        assert_eq!(came.elapsed(), Duration::ZERO);
        let mut third = counted(&pulse, &count);
        assert_eq!(third.next().await, 2);
        assert_eq!(came.elapsed(), Duration::from_millis(500));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_after_a_panic_is_answered() {
        let pulse = Pulse::default();
        let every = Duration::from_secs(1);
        let first: Listener<usize> =
            pulse.listen(every, || async { panic!("as part of the test") });
        tokio::time::sleep(every).await;
        let mut second = pulse.listen(every, || async { 7 });
        assert_eq!(second.next().await, 7);
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_for_nobody() {
        let (pulse, count) = (Pulse::default(), Arc::default());
        let (first, second) = (counted(&pulse, &count), counted(&pulse, &count));
        drop(first);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let asked = count.load(Ordering::Relaxed);
        assert!(asked >= 5, "{asked}");
        drop(second);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(count.load(Ordering::Relaxed), asked);
        counted(&pulse, &count).next().await;
        assert!(count.load(Ordering::Relaxed) > asked);
    }
}
