//! What a round does: plain data, made from a seed by a pure function.

use std::fmt;
use std::time::Duration;

use bson::{Document, RawDocumentBuf, doc};
use clap::ValueEnum;
use testbed::Version;

use crate::ddl;
use crate::dice::{Dice, Ids, POOL, id};
use crate::{stamps, writes};

/// The mirrored database; its copy is `shop_backup`, as is the default.
pub const DATABASE: &str = "shop";

/// Another database of the source, which collections come from and go to.
pub const ELSEWHERE: &str = "elsewhere";

/// What is left out unless one wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Switch {
    /// A mirror that was taken over while it hung wakes up in rounds with commands on collections
    /// or with a time series as well: what it had begun of those can then not be held back
    /// (`docs/limits.md`).
    Zombies,
}

/// Where source and target are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Two databases of one server.
    Together,
    /// Two servers.
    Apart,
    /// The source has three members that elect.
    Elections,
    /// Two servers, and the source's oplog rolls over within seconds.
    Forgetful,
}

/// A command, and where it is run.
#[derive(Clone, PartialEq, Debug)]
pub struct Command {
    /// For counts: `update`, `create view`.
    pub kind: &'static str,
    /// Which database.
    pub on: On,
    /// Its bytes.
    pub body: RawDocumentBuf,
}

/// A database of the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    /// The mirrored one.
    Mirrored,
    /// Another one.
    Elsewhere,
    /// `admin`.
    Admin,
}

impl Command {
    /// A command on the mirrored database.
    pub fn new(kind: &'static str, body: &Document) -> Self {
        Self::on(On::Mirrored, kind, body)
    }

    /// A command on some database.
    pub fn on(on: On, kind: &'static str, body: &Document) -> Self {
        // Invariant: names in the plan hold no zero bytes, which is all that can fail.
        let body = RawDocumentBuf::try_from(body).expect("a command");
        Self { kind, on, body }
    }
}

/// One thing to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Commands one after the other, each for itself.
    Commands(Vec<Command>),
    /// Commands as one transaction, which is given up in the end if not `commit`.
    Transaction {
        commands: Vec<Command>,
        commit: bool,
    },
    /// Something breaks.
    Fault(Fault),
    /// The target is compared with what the source was at that time.
    Check,
}

/// What breaks, and for how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// kill -9 of the mirror, which is started again after this pause.
    KillMirror(Duration),
    /// The mirror is paused in its own way, and resumed.
    PauseMirror(Duration),
    /// SIGSTOP and SIGCONT.
    FreezeMirror(Duration),
    /// While the mirror is frozen another process takes over; then the frozen one wakes up.
    TakeOver(Duration),
    /// kill -9 of a server, which is started again after this pause.
    KillServer(Side, Duration),
    /// SIGSTOP and SIGCONT of a server.
    FreezeServer(Side, Duration),
    /// The source's primary steps down.
    StepDown,
    /// All sessions of the source are killed, cursors with them.
    KillSessions,
    /// For so long, every fifth command of the mirror meets this trouble.
    Trouble(Side, Trouble, Duration),
    /// While no mirror runs, the source's oplog loses everything that it had.
    LoseHistory,
    /// Somebody else writes to the target.
    Stranger(Meddling, &'static str),
    /// A user asks for all documents of a collection to be put right.
    Sync(&'static str),
}

/// What somebody else does to a collection of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meddling {
    /// Deletes some documents.
    Delete,
    /// Changes some.
    Change,
    /// Inserts one, with keys that the source may use as well.
    Insert(i32),
    /// Drops all indexes.
    DropIndexes,
    /// Builds an index.
    BuildIndex,
}

/// What a server does to a command, by its own fail points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// Refuses it.
    Code(i32),
    /// Closes the connection instead of answering.
    Close,
    /// Carries it out, and says that it may not last.
    WriteConcern,
    /// Takes its time.
    Slow,
}

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// What is mirrored.
    Source,
    /// The copy.
    Target,
}

impl Fault {
    /// For counts.
    pub fn kind(self) -> &'static str {
        match self {
            Self::KillMirror(_) => "kill mirror",
            Self::PauseMirror(_) => "pause mirror",
            Self::FreezeMirror(_) => "freeze mirror",
            Self::TakeOver(_) => "take over",
            Self::KillServer(Side::Source, _) => "kill source",
            Self::KillServer(Side::Target, _) => "kill target",
            Self::FreezeServer(Side::Source, _) => "freeze source",
            Self::FreezeServer(Side::Target, _) => "freeze target",
            Self::StepDown => "step down",
            Self::KillSessions => "kill sessions",
            Self::Trouble(_, Trouble::Code(_), _) => "refused commands",
            Self::Trouble(_, Trouble::Close, _) => "closed connections",
            Self::Trouble(_, Trouble::WriteConcern, _) => "write concern errors",
            Self::Trouble(_, Trouble::Slow, _) => "slow commands",
            Self::LoseHistory => "lost history",
            Self::Stranger(Meddling::Delete, _) => "stranger deletes",
            Self::Stranger(Meddling::Change, _) => "stranger changes",
            Self::Stranger(Meddling::Insert(_), _) => "stranger inserts",
            Self::Stranger(Meddling::DropIndexes, _) => "stranger drops indexes",
            Self::Stranger(Meddling::BuildIndex, _) => "stranger builds an index",
            Self::Sync(_) => "sync",
        }
    }
}

/// Who does a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// Before the mirror is started.
    Before,
    /// One of the writers; they run beside each other.
    Writer(u32),
    /// Whoever breaks things.
    Breaker,
    /// Whoever looks at the target.
    Observer,
}

/// A step of the plan. What is not done by writers is done when as many of their steps are done
/// as stand before it.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// Who does it.
    pub who: Who,
    /// What is done.
    pub action: Action,
}

/// What is particular about a collection, and about the writes to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// Unique keys wander between its documents.
    Seats,
    /// Capped, so that old documents make room for new ones.
    Ring,
    /// A time series.
    Readings,
    /// Documents of several MiB, and events that are too large.
    Large,
}

impl Kind {
    /// Whether transactions may write it.
    pub fn is_transactional(self) -> bool {
        !matches!(self, Self::Ring | Self::Readings)
    }
}

/// A collection of the plan. What stands behind its name may change.
#[derive(Clone, Debug)]
pub struct Collection {
    /// What is particular about it.
    pub kind: Kind,
    /// Its name.
    pub name: &'static str,
    /// Its ids.
    pub ids: Ids,
    /// What it is created with.
    pub options: Document,
    /// How many documents it holds before the mirror starts.
    pub documents: u32,
}

/// A round, as data.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Where it came from.
    pub seed: u64,
    /// What the source runs, and mostly the target.
    pub version: Version,
    /// What the target runs.
    pub target_version: Version,
    /// What one wants beside what always is.
    pub switches: Vec<Switch>,
    /// Where it runs.
    pub layout: Layout,
    /// Whether the mirror may use internal deltas.
    pub internal_delta: bool,
    /// Whether batches are several transactions at the same time.
    pub parallel: bool,
    /// Size of the copy's ranges.
    pub range_bytes: u64,
    /// Lanes of the copy.
    pub copy_lanes: usize,
    /// The mirror's memory.
    pub memory_bytes: usize,
    /// Whether the source forgets its past at once, so that documents must be read as of a later
    /// time than the mirror's position.
    pub forgets: bool,
    /// Whether the mirror verifies itself all the time, and not only once.
    pub verifies: bool,
    /// Whether others write to the target, which verifications must heal.
    pub strangers: bool,
    /// How long a writer thinks between two steps.
    pub think: Duration,
    /// Whether writers wait until the mirror has planned its copy, so that their writes meet it.
    pub waits: bool,
    /// The collections that are there before.
    pub collections: Vec<&'static str>,
    /// What is done.
    pub steps: Vec<Step>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} on {} {:?} {}, {}, {} steps, ranges of {} bytes, {} lanes, {} KiB{}{}{}{}",
            self.seed,
            self.version,
            self.layout,
            self.target_version,
            self.collections.join(" "),
            self.steps.len(),
            self.range_bytes,
            self.copy_lanes,
            self.memory_bytes >> 10,
            if self.forgets {
                ", forgets its past"
            } else {
                ""
            },
            match (self.verifies, self.strangers) {
                (_, true) => ", strangers",
                (true, false) => ", verifies",
                (false, false) => "",
            },
            if self.internal_delta {
                ""
            } else {
                ", reads changed documents again"
            },
            if self.parallel { ", parallel" } else { "" },
        )
    }
}

/// Makes the plan of a seed.
pub fn plan(seed: u64, version: Version, switches: &[Switch]) -> Plan {
    let mut dice = Dice::new(seed);
    let layout = match dice.below(20) {
        0..9 => Layout::Together,
        9..16 => Layout::Apart,
        16..18 => Layout::Elections,
        _ => Layout::Forgetful,
    };
    let mut plan = Plan {
        seed,
        version,
        target_version: match layout {
            Layout::Apart if dice.one_in(4) => other(version),
            _ => version,
        },
        switches: switches.to_vec(),
        layout,
        internal_delta: !dice.one_in(8),
        // Dice of its own: older seeds still mean the same otherwise.
        parallel: Dice::new(!seed).one_in(4),
        range_bytes: *dice.pick(&[8_000, 20_000, 40_000, 200_000, 64 << 20]),
        copy_lanes: *dice.pick(&[1, 2, 3]),
        memory_bytes: *dice.pick(&[64 << 20, 64 << 20, 4 << 20, 1 << 20]),
        think: Duration::from_millis(*dice.pick(&[0, 2, 5, 10])),
        waits: !dice.one_in(3),
        forgets: layout != Layout::Forgetful && dice.one_in(8),
        verifies: dice.one_in(2),
        strangers: false,
        collections: Vec::new(),
        steps: Vec::new(),
    };
    if !plan.forgets && dice.one_in(12) {
        (plan.strangers, plan.verifies) = (true, true);
    }
    let collections = collections(&mut dice, plan.internal_delta);
    plan.collections = collections.iter().map(|one| one.name).collect();
    for collection in &collections {
        before(&mut dice, collection, &mut plan.steps);
    }
    for command in ddl::indexes_before(&mut dice, &collections) {
        push(
            &mut plan.steps,
            Who::Before,
            Action::Commands(vec![command]),
        );
    }
    let round = Round {
        writers: 2 + dice.below(2),
        // In some rounds nothing breaks, in some the mirror is killed all the time.
        faults: match layout {
            Layout::Forgetful => 2,
            _ => *dice.pick(&[0, 0, 1, 2, 2, 4, 12]),
        },
        ddl: *dice.pick(&[0, 0, 3, 10, 30]),
        heavy: dice.one_in(6),
        syncs: dice.one_in(6),
        strangers: plan.strangers,
        special: plan.internal_delta,
        series: collections.iter().any(|one| one.kind == Kind::Readings),
        switches: switches.to_vec(),
    };
    // Commands on collections take as long as a hundred writes.
    if round.ddl == 0 {
        // Then no write creates a collection either.
        for name in writes::EXTRAS.iter().chain([&writes::TWINS]) {
            let create = Command::new("create", &doc! {"create": *name});
            push(&mut plan.steps, Who::Before, Action::Commands(vec![create]));
        }
    }
    let writes = *dice.pick(&[300, 600, 900, 1500]);
    let writes = if round.ddl > 10 { 300 } else { writes };
    round.fill(&mut dice, writes, layout, &collections, &mut plan.steps);
    stamps::fill(&mut plan);
    plan
}

fn other(version: Version) -> Version {
    match version {
        Version::V6_0_5 => Version::V6_0_27,
        Version::V6_0_27 => Version::V6_0_5,
    }
}

fn push(steps: &mut Vec<Step>, who: Who, action: Action) {
    steps.push(Step { who, action });
}

/// Three to five plain collections, `orders` always among them, and some particular ones. `special`
/// says whether those that are only mirrored with the internal flags may be among them.
fn collections(dice: &mut Dice, special: bool) -> Vec<Collection> {
    let clustered = doc! {"clusteredIndex": {"key": {"_id": 1}, "unique": true}};
    let images = doc! {"changeStreamPreAndPostImages": {"enabled": true}};
    let collation = doc! {"collation": {"locale": "de", "strength": 2}};
    let of = |name, ids, options, documents| Collection {
        kind: Kind::Plain,
        name,
        ids,
        options,
        documents,
    };
    let mut all = vec![
        of("items", Ids::Strings, doc! {}, 200),
        of("odd", Ids::Mixed, doc! {}, 200),
        of("files", Ids::Objects, images, 200),
        of("deutsch", Ids::Strings, collation, 100),
        of("clustered", Ids::Mixed, clustered, 100),
    ];
    while all.len() > 4 || (all.len() > 2 && dice.one_in(2)) {
        let at = dice.below(u32::try_from(all.len()).unwrap_or(1)) as usize;
        all.remove(at);
    }
    all.insert(
        0,
        of(
            "orders",
            Ids::Integers,
            doc! {},
            *dice.pick(&[200, 1000, 2000]),
        ),
    );
    let mut add = |kind, name, options, documents| {
        all.push(Collection {
            kind,
            ..of(name, Ids::Integers, options, documents)
        });
    };
    if dice.one_in(2) {
        add(Kind::Seats, "seats", doc! {}, 100);
    }
    if special && dice.one_in(2) {
        let most = *dice.pick(&[20, 100, 1000]);
        let options = doc! {"capped": true, "size": 60_000, "max": most};
        add(Kind::Ring, "ring", options, 200);
    }
    if special && dice.one_in(3) {
        let options = doc! {
            "timeseries": {"timeField": "at", "metaField": "sensor", "granularity": "seconds"},
        };
        add(Kind::Readings, "readings", options, 300);
    }
    if dice.one_in(12) {
        add(Kind::Large, "large", doc! {}, 3);
    }
    all
}

/// Creates and fills a collection.
fn before(dice: &mut Dice, collection: &Collection, steps: &mut Vec<Step>) {
    let mut create = doc! {"create": collection.name};
    create.extend(collection.options.clone());
    let mut commands = vec![Command::new("create", &create)];
    match collection.kind {
        Kind::Seats => commands.push(writes::unique_seats()),
        Kind::Large => commands.push(writes::wide()),
        _ => {}
    }
    let mut documents = Vec::new();
    for number in 0..collection.documents {
        // Ids above the pool are copied, and met by ranges of ids only.
        let number = if number % 2 == 0 {
            number / 2
        } else {
            POOL + number
        };
        documents.push(match collection.kind {
            Kind::Readings => writes::reading(dice),
            Kind::Seats => {
                let mut document = dice.document(id(collection.ids, number), 600);
                document.insert("seat", writes::seat(number));
                document
            }
            _ => dice.document(id(collection.ids, number), 600),
        });
        if documents.len() == 100 {
            commands.push(writes::insert(
                collection.name,
                std::mem::take(&mut documents),
            ));
        }
    }
    commands.push(writes::insert(collection.name, documents));
    push(steps, Who::Before, Action::Commands(commands));
}

/// What a round has of everything.
struct Round {
    writers: u32,
    faults: u32,
    /// Of a hundred steps, so many are commands on collections and indexes.
    ddl: u32,
    heavy: bool,
    syncs: bool,
    strangers: bool,
    /// Whether what is only mirrored with the internal flags may appear.
    special: bool,
    /// Whether there is a time series.
    series: bool,
    switches: Vec<Switch>,
}

impl Round {
    fn fill(
        &self,
        dice: &mut Dice,
        writes: u32,
        layout: Layout,
        collections: &[Collection],
        steps: &mut Vec<Step>,
    ) {
        let fault_every = writes / (self.faults + 1);
        for number in 1..=writes {
            let who = Who::Writer(dice.below(self.writers));
            let action = match dice.below(100) {
                percent if percent < self.ddl => ddl::ddl(dice, collections, self.special),
                percent if percent < self.ddl + 7 => transaction(dice, collections, self.heavy),
                _ => Action::Commands(vec![writes::write(dice, collections, self.heavy)]),
            };
            push(steps, who, action);
            if self.faults > 0 && number % fault_every == 0 && number < writes {
                let fault = if self.faults > 4 {
                    Fault::KillMirror(Duration::from_millis(*dice.pick(&[0, 0, 50, 400])))
                } else {
                    self.fault(dice, layout)
                };
                push(steps, Who::Breaker, Action::Fault(fault));
            }
            if self.syncs && dice.one_in(80) {
                let fault = Fault::Sync(dice.pick(collections).name);
                push(steps, Who::Breaker, Action::Fault(fault));
            }
            if self.strangers {
                if dice.one_in(60) {
                    let fault = stranger(dice, collections);
                    push(steps, Who::Breaker, Action::Fault(fault));
                }
            } else if dice.one_in(60) {
                push(steps, Who::Observer, Action::Check);
            }
        }
    }
}

/// Somebody writes to a collection of the target that the mirror compares.
fn stranger(dice: &mut Dice, collections: &[Collection]) -> Fault {
    let compared: Vec<&Collection> = transactional(collections).collect();
    let meddling = match dice.below(9) {
        0 | 1 => Meddling::Delete,
        2 | 3 => Meddling::Change,
        4..7 => Meddling::Insert(dice.between(0, 60)),
        7 => Meddling::DropIndexes,
        _ => Meddling::BuildIndex,
    };
    Fault::Stranger(meddling, dice.pick(&compared).name)
}

/// Collections that transactions may write.
fn transactional(collections: &[Collection]) -> impl Iterator<Item = &Collection> {
    let is_one = |collection: &&Collection| collection.kind.is_transactional();
    collections.iter().filter(is_one)
}

fn transaction(dice: &mut Dice, collections: &[Collection], heavy: bool) -> Action {
    let collections: Vec<Collection> = transactional(collections).cloned().collect();
    let collections = collections.as_slice();
    let has_seats = collections.iter().any(|one| one.kind == Kind::Seats);
    if has_seats && dice.one_in(2) {
        return Action::Transaction {
            commands: writes::seats_change_hands(dice),
            commit: !dice.one_in(6),
        };
    }
    if heavy && dice.one_in(3) {
        // Larger than the memory of some mirrors.
        let everything = (0..=dice.below(3)).map(|_| writes::everything(dice, collections));
        return Action::Transaction {
            commands: everything.collect(),
            commit: !dice.one_in(6),
        };
    }
    let commands = (0..=dice.below(8)).map(|_| writes::write(dice, collections, false));
    Action::Transaction {
        commands: commands.collect(),
        commit: !dice.one_in(6),
    }
}

impl Round {
    fn fault(&self, dice: &mut Dice, layout: Layout) -> Fault {
        if layout == Layout::Forgetful && !dice.one_in(3) {
            return Fault::LoseHistory;
        }
        let held_back = self.ddl == 0 && !self.series;
        match fault(dice, layout) {
            Fault::TakeOver(pause) if !held_back && !self.switches.contains(&Switch::Zombies) => {
                Fault::KillMirror(pause)
            }
            fault => fault,
        }
    }
}

fn fault(dice: &mut Dice, layout: Layout) -> Fault {
    let pause = Duration::from_millis(*dice.pick(&[0, 50, 300, 1000, 2000]));
    let side = if dice.one_in(2) {
        Side::Source
    } else {
        Side::Target
    };
    match dice.below(20) {
        16.. => trouble(dice, side),
        0..5 => Fault::KillMirror(pause),
        5 => Fault::PauseMirror(pause),
        6 | 7 => Fault::FreezeMirror(pause),
        8 | 9 => Fault::TakeOver(pause),
        10 | 11 => Fault::KillServer(side, pause),
        12 => Fault::FreezeServer(side, pause),
        13 if layout == Layout::Elections => Fault::KillServer(Side::Source, pause),
        13 | 14 => Fault::StepDown,
        _ => Fault::KillSessions,
    }
}

/// Errors that pass: the servers' own for elections, shutdowns, conflicts, time limits, cursors,
/// snapshots and the network.
const CODES: [i32; 13] = [
    6, 43, 89, 91, 112, 189, 246, 251, 262, 9001, 10107, 11600, 11602,
];

fn trouble(dice: &mut Dice, side: Side) -> Fault {
    let trouble = match dice.below(6) {
        0..3 => Trouble::Code(*dice.pick(&CODES)),
        3 => Trouble::Close,
        4 => Trouble::WriteConcern,
        _ => Trouble::Slow,
    };
    let pause = Duration::from_millis(*dice.pick(&[300, 1000, 2000]));
    Fault::Trouble(side, trouble, pause)
}
