//! Empty timestamps, which a server of 6.0.5 that was killed sets to the current time when it finds
//! them in its oplog as part of a whole document (docs/limits.md). No event tells that, so no mirror
//! can follow it: where such servers are killed, there are none.

use mongomirror::engine::bson::scan::{Elements, kind};

use crate::plan::{Action, Fault, Layout, Plan};
use testbed::Version;

/// Whether the source's server may change documents by itself.
fn may_change(plan: &Plan) -> bool {
    let kills = |action: &Action| matches!(action, Action::Fault(Fault::KillServer(..)));
    let is_killed = plan.steps.iter().any(|step| kills(&step.action));
    plan.version == Version::V6_0_5 && (is_killed || plan.layout == Layout::Elections)
}

/// Fills all empty timestamps of the plan's writes, where that is necessary.
pub fn fill(plan: &mut Plan) {
    if !may_change(plan) {
        return;
    }
    for step in &mut plan.steps {
        let (Action::Commands(commands) | Action::Transaction { commands, .. }) = &mut step.action
        else {
            continue;
        };
        for command in commands {
            let mut bytes = command.body.as_bytes().to_vec();
            let mut places = Vec::new();
            find(&bytes, 0, &mut places);
            for place in places {
                bytes[place] = 1;
            }
            command.body = bson::RawDocumentBuf::from_bytes(bytes).expect("the same document");
        }
    }
}

/// Where the values of empty timestamps begin.
fn find(document: &[u8], begin: usize, places: &mut Vec<usize>) {
    for element in Elements::new(document).map_while(Result::ok) {
        let within = element.value.as_ptr() as usize - document.as_ptr() as usize;
        let at = begin + within;
        match element.kind {
            kind::TIMESTAMP if element.value.iter().all(|byte| *byte == 0) => places.push(at),
            kind::DOCUMENT | kind::ARRAY => find(element.value, at, places),
            _ => {}
        }
    }
}
