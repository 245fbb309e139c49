//! Stepping over events that are too large to be read.
//!
//! A server that cannot put an event into one reply refuses the whole reply, with whatever
//! innocent events stood before it (`facts` mongodb 4); asking again gives the same. So the stream
//! is opened again with one event in a reply, which passes the innocent ones on whole and ends
//! exactly at the culprit. Only the culprit is then read through a projection that leaves its
//! content out: the document itself is read again from the source (`Outcome::Refetch`).
//!
//! How large an event gets in a reply: its token repeats the document's `_id` in hexadecimal, and
//! the reply repeats the token. With an `_id` of n bytes a whole insert takes 6 n and the document's
//! other fields, a slim event 5 n, a bare one 4 n; so a bare one fits up to an `_id` of 4 MiB.
//! (Measured on 6.0.5 and 6.0.27; an insert above 8 MiB of `_id` fits in no oplog entry.)
//!
//! Where the event itself is small enough and only the reply is not, 6.0.27 answers with 10334,
//! while 6.0.5 closes the connection without a word. From here that looks like a broken network, so
//! what counts is that the server answers a ping at once and does the same again. Stepping without
//! need is harmless: an event that is read slim is exact too, and commands keep all they say.

use bson::{Document, doc};

/// In which form the stream is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// Events as they are, as many as fit.
    Whole,
    /// Events as they are, one in a reply.
    One,
    /// One event without its content.
    Slim,
    /// One event that does not even tell which document it is about.
    Bare,
}

/// The field by which an event is known to have been read without its content. Where events wait
/// for a range they are kept as bytes, so it has to be in these.
pub const MARK: &str = "mongomirrorSlim";

impl View {
    /// The stage behind `$changeStream`. Commands are kept as a whole: they cannot be that large,
    /// and could not be read again.
    pub fn stage(self) -> Option<Document> {
        let mut fields = doc! {
            MARK: {"$literal": true},
            "operationType": 1,
            "clusterTime": 1,
            "ns": 1,
            "to": 1,
            "collectionUUID": 1,
            "operationDescription": 1,
            "lsid": 1,
            "txnNumber": 1,
        };
        match self {
            Self::Whole | Self::One => return None,
            Self::Slim => {
                fields.insert("documentKey", 1);
            }
            Self::Bare => {}
        }
        Some(doc! {"$project": fields})
    }
}

impl View {
    /// How often a server may close the connection over one event before that is taken for its
    /// size. Reading one by one or slim costs little, losing the document's `_id` very much.
    fn closed_at_most(self) -> u32 {
        match self {
            Self::Whole => 2,
            Self::One => 1,
            Self::Slim | Self::Bare => 4,
        }
    }
}

/// Which form comes next. Pure.
#[derive(Debug)]
pub struct Steps {
    view: View,
    /// Events to be passed on one by one before the ordinary form is tried again: the culprit is
    /// among those that would have made one reply.
    left: u32,
    reply: u32,
    closed: u32,
}

/// Not even the smallest form can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable;

impl Steps {
    /// `reply`: the most events in an ordinary reply.
    pub fn new(reply: u32) -> Self {
        Self {
            view: View::Whole,
            left: 0,
            reply,
            closed: 0,
        }
    }

    /// The form to open the stream in.
    pub fn view(&self) -> View {
        self.view
    }

    /// The server says that an event is too large.
    ///
    /// # Errors
    /// If there is no smaller form.
    pub fn too_large(&mut self) -> Result<(), Unreadable> {
        self.closed = 0;
        self.view = match self.view {
            View::Whole => {
                self.left = self.reply;
                View::One
            }
            View::One => View::Slim,
            View::Slim => View::Bare,
            View::Bare => {
                self.view = View::Whole;
                return Err(Unreadable);
            }
        };
        Ok(())
    }

    /// A server that is alive closed the connection instead of answering. Returns whether the form
    /// changes.
    ///
    /// # Errors
    /// As [`Self::too_large`].
    pub fn closed(&mut self) -> Result<bool, Unreadable> {
        self.closed += 1;
        if self.closed < self.view.closed_at_most() {
            return Ok(false);
        }
        self.too_large().map(|()| true)
    }

    /// A reply with so many events came; returns whether the form changes.
    pub fn delivered(&mut self, events: u32) -> bool {
        self.closed = 0;
        let next = match self.view {
            View::Whole => View::Whole,
            View::One => {
                self.left = self
                    .left
                    .saturating_sub(events.max(u32::from(self.left == 1)));
                if self.left == 0 {
                    View::Whole
                } else {
                    View::One
                }
            }
            // Nothing is here that could not be read.
            View::Slim | View::Bare if events == 0 => View::Whole,
            // The next one may be as large: one look is cheaper than an ordinary reply that fails.
            View::Slim | View::Bare => {
                self.left = 1;
                View::One
            }
        };
        std::mem::replace(&mut self.view, next) != next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_culprit_is_read_without_its_content() {
        let mut steps = Steps::new(100);
        assert!(!steps.delivered(70));
        assert_eq!(steps.too_large(), Ok(()));
        for _ in 0..40 {
            assert_eq!(steps.view(), View::One);
            assert!(!steps.delivered(1));
        }
        assert_eq!(steps.too_large(), Ok(()));
        assert_eq!(steps.view(), View::Slim);
        assert!(steps.delivered(1));
        assert_eq!(steps.view(), View::One);
        assert!(steps.delivered(1));
        assert_eq!(steps.view(), View::Whole);
    }

    #[test]
    fn of_many_in_a_row_each_costs_two_steps() {
        let mut steps = Steps::new(100);
        steps.too_large().unwrap();
        for _ in 0..50 {
            steps.too_large().unwrap();
            assert_eq!(steps.view(), View::Slim);
            assert!(steps.delivered(1));
            assert_eq!(steps.view(), View::One);
        }
        // On an idle source the ordinary form comes back without a further event.
        assert!(steps.delivered(0));
        assert_eq!(steps.view(), View::Whole);
    }

    #[test]
    fn an_alarm_without_a_culprit_ends_by_itself() {
        let mut steps = Steps::new(3);
        steps.too_large().unwrap();
        assert!(!steps.delivered(1));
        assert!(!steps.delivered(0));
        assert!(!steps.delivered(1));
        assert!(steps.delivered(1));
        assert_eq!(steps.view(), View::Whole);
    }

    #[test]
    fn a_closed_connection_counts_only_when_it_repeats() {
        let mut steps = Steps::new(100);
        assert_eq!(steps.closed(), Ok(false));
        assert!(!steps.delivered(5));
        assert_eq!(steps.closed(), Ok(false));
        assert_eq!(steps.view(), View::Whole);
        assert_eq!(steps.closed(), Ok(true));
        assert_eq!(steps.view(), View::One);
        assert_eq!(steps.closed(), Ok(true));
        assert_eq!(steps.view(), View::Slim);
        for _ in 0..3 {
            assert_eq!(steps.closed(), Ok(false));
        }
        assert_eq!(steps.view(), View::Slim);
        assert_eq!(steps.closed(), Ok(true));
        assert_eq!(steps.view(), View::Bare);
    }

    #[test]
    fn what_no_form_can_show_ends_the_reading() {
        let mut steps = Steps::new(100);
        for _ in 0..3 {
            steps.too_large().unwrap();
        }
        assert_eq!(steps.view(), View::Bare);
        assert_eq!(steps.too_large(), Err(Unreadable));
    }

    #[test]
    fn slim_events_keep_what_commands_say() {
        let slim = View::Slim.stage().unwrap();
        let fields = slim.get_document("$project").unwrap();
        for field in ["operationDescription", "to", "documentKey", "clusterTime"] {
            assert!(fields.contains_key(field), "{field}");
        }
        let bare = View::Bare.stage().unwrap();
        let fields = bare.get_document("$project").unwrap();
        assert!(!fields.contains_key("documentKey"));
        assert_eq!(View::One.stage(), None);
    }
}
