//! The roads by which a controller is changed, and what is known not to hold on them.

use nodbfs::step::Step;
use serde_json::{Map, Value};

/// Files and which document each of them is.
pub type State = &'static [(&'static str, Option<u8>)];

/// One way to change controllers. The first of its files is the one that a neighbour commits to as well.
pub struct Road {
    pub name: &'static str,
    /// Its function in `writer.py`.
    pub call: &'static str,
    pub before: State,
    pub after: State,
    /// What there may be on the way from one to the other.
    pub between: &'static [State],
    /// What fails on this road in any case, at its first time.
    pub preset: Option<(Step, Failure)>,
    /// A dead daemon has left a temporary file.
    pub leftover: bool,
}

/// What happens at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its effect fails.
    Error,
    /// The daemon is killed.
    Kill,
    /// The daemon is stopped until a neighbour has committed under the expired lock.
    Stop,
    /// The daemon is told to end.
    End,
}

impl Failure {
    pub const ALL: [Self; 4] = [Self::Error, Self::Kill, Self::Stop, Self::End];

    /// As a failpoint has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::End => "end",
        }
    }
}

const WEPP: State = &[("wepp.nodb", Some(0))];

const SAVE: Road = Road {
    name: "close",
    call: "close",
    before: WEPP,
    after: &[("wepp.nodb", Some(1))],
    between: &[],
    preset: None,
    leftover: false,
};

const UNLINK: Road = Road {
    name: "unlink",
    call: "unlink",
    after: &[("wepp.nodb", None)],
    ..SAVE
};

pub const ROADS: &[Road] = &[
    SAVE,
    Road {
        name: "fsync",
        call: "fsync",
        ..SAVE
    },
    Road {
        name: "create",
        call: "create",
        before: &[("wepp.nodb", None)],
        ..SAVE
    },
    Road {
        name: "rename onto",
        call: "rename",
        before: &[("wepp.nodb", Some(0)), ("draft", Some(1))],
        after: &[("wepp.nodb", Some(1)), ("draft", None)],
        // the old generation, which was exchanged for the new one; and a new one that was overtaken, which is kept
        between: &[
            &[("wepp.nodb", Some(1)), ("draft", Some(0))],
            &[("wepp.nodb", Some(1)), ("draft", None)],
        ],
        ..SAVE
    },
    Road {
        name: "rename of a symlink onto",
        call: "symlink_onto",
        before: &[("wepp.nodb", Some(0)), ("draft", Some(1))],
        after: &[("wepp.nodb", Some(1)), ("draft", Some(1))],
        ..SAVE
    },
    UNLINK,
    Road {
        name: "rename away",
        call: "move_away",
        before: &[("wepp.nodb", Some(0)), ("kept.json", Some(7))],
        after: &[("wepp.nodb", None), ("kept.json", Some(0))],
        ..SAVE
    },
    Road {
        name: "exchange",
        call: "exchange",
        before: &[("wepp.nodb", Some(0)), ("soils.nodb", Some(8))],
        after: &[("wepp.nodb", Some(8)), ("soils.nodb", Some(0))],
        ..SAVE
    },
    Road {
        name: "link",
        call: "link",
        before: &[("wepp.nodb", None), ("draft", Some(1))],
        after: &[("wepp.nodb", Some(1)), ("draft", Some(1))],
        ..SAVE
    },
    Road {
        name: "utimens",
        call: "utimens",
        after: WEPP,
        ..SAVE
    },
    Road {
        name: "close of half a document",
        call: "refused",
        after: WEPP,
        ..SAVE
    },
    Road {
        name: "listing with a leftover",
        call: "listing",
        after: WEPP,
        leftover: true,
        ..SAVE
    },
    Road {
        name: "close, overtaken at the exchange",
        preset: Some((Step::Exchange, Failure::Stop)),
        ..SAVE
    },
    Road {
        name: "close, not read back",
        preset: Some((Step::ReadBack, Failure::Error)),
        ..SAVE
    },
    Road {
        name: "close, the cache away",
        preset: Some((Step::Put, Failure::Error)),
        ..SAVE
    },
    Road {
        name: "unlink, taken back",
        preset: Some((Step::MovedLook, Failure::Error)),
        ..UNLINK
    },
];

/// Steps that have no effect of their own, so that none can fail.
pub const EFFECTLESS: &[Step] = &[Step::Settle, Step::Follow, Step::Answer];

/// Steps that are taken behind the writer's back, sooner or later.
pub const BEHIND: &[Step] = &[Step::RemoveTemporary];

/// What is known not to hold, and why. Each must show, or it is none any more.
pub struct Gap {
    pub why: &'static str,
    /// On all roads, or on this one.
    pub road: Option<&'static str>,
    pub failure: Failure,
    pub steps: &'static [Step],
    /// Old code, which believes any entry, may believe one that is not the file's.
    pub stale: bool,
    /// Something stays until the next daemon.
    pub left: bool,
    /// What may be on disk instead.
    pub shown: &'static [State],
}

const NONE: Gap = Gap {
    why: "",
    road: None,
    failure: Failure::Error,
    steps: &[],
    stale: false,
    left: false,
    shown: &[],
};

pub const GAPS: &[Gap] = &[
    Gap {
        why: "killed between publication and refresh: old code believes the entry until somebody reads through a mount or saves",
        failure: Failure::Kill,
        steps: &[
            Step::Look,
            Step::TakeBack,
            Step::SyncDir,
            Step::ReadBack,
            Step::Undo,
            Step::Settle,
            Step::Put,
            Step::StillCurrent,
            Step::Forget,
            Step::Owe,
            Step::OweRename,
            Step::Pay,
            Step::MovedLook,
            Step::MoveBack,
            Step::RemoveReplaced,
            Step::RemoveUnlinked,
            Step::RemoveTemporary,
        ],
        stale: true,
        ..NONE
    },
    Gap {
        why: "killed before a debt is paid: old code believes the entry until the next daemon on that state directory has paid",
        road: Some("close, the cache away"),
        failure: Failure::Kill,
        steps: &[Step::Release, Step::Answer, Step::Pay],
        stale: true,
        ..NONE
    },
    Gap {
        why: "what a living daemon could not remove is removed by the next one",
        steps: &[
            Step::RemoveTemporary,
            Step::RemoveUnlinked,
            Step::RemoveReplaced,
            Step::ClearLeftover,
        ],
        left: true,
        ..NONE
    },
    Gap {
        why: "overtaken while stopped, and killed before the stale publication is taken back",
        road: Some("close, overtaken at the exchange"),
        failure: Failure::Kill,
        steps: &[Step::Look, Step::TakeBack],
        shown: &[&[("wepp.nodb", Some(1))]],
        ..NONE
    },
    Gap {
        why: "overtaken while stopped, and the disk fails when the stale publication is taken back",
        road: Some("close, overtaken at the exchange"),
        steps: &[Step::TakeBack],
        left: true,
        shown: &[&[("wepp.nodb", Some(1))]],
        ..NONE
    },
    Gap {
        why: "the disk fails at the read back, and when the publication is undone",
        road: Some("close, not read back"),
        steps: &[Step::Undo],
        left: true,
        shown: &[&[("wepp.nodb", Some(1))]],
        ..NONE
    },
    Gap {
        why: "the disk fails at the look after the rename, and at the rename back",
        road: Some("unlink, taken back"),
        steps: &[Step::MoveBack],
        stale: true,
        left: true,
        shown: &[&[("wepp.nodb", None)]],
        ..NONE
    },
    Gap {
        why: "a controller that replaces a plain file and is overtaken while stopped leaves that name empty",
        road: Some("rename away"),
        failure: Failure::Stop,
        steps: &[Step::Move],
        shown: &[&[("wepp.nodb", Some(2)), ("kept.json", None)]],
        ..NONE
    },
    Gap {
        why: "the disk fails at the look after the rename, and a neighbour creates the controller before the rename back",
        road: Some("unlink, taken back"),
        failure: Failure::Stop,
        steps: &[Step::MoveBack],
        left: true,
        ..NONE
    },
    Gap {
        why: "stopped between the exchange of two controllers and the look at it, and overtaken",
        road: Some("exchange"),
        failure: Failure::Stop,
        steps: &[Step::MovedLook],
        stale: true,
        shown: &[&[("wepp.nodb", Some(0)), ("soils.nodb", Some(2))]],
        ..NONE
    },
];

impl Gap {
    pub fn covers(&self, road: &Road, step: Step, failure: Failure) -> bool {
        self.road.is_none_or(|name| name == road.name)
            && failure == self.failure
            && self.steps.contains(&step)
    }
}

/// As JSON, with one file's document replaced.
pub fn state(state: State, contested: Option<u8>) -> Value {
    let mut map: Map<_, _> = state
        .iter()
        .map(|(name, n)| ((*name).to_owned(), Value::from(*n)))
        .collect();
    if let Some(n) = contested {
        map.insert(state[0].0.to_owned(), Value::from(n));
    }
    Value::Object(map)
}
