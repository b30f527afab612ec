//! The steps that sequences are made of, and how they are generated.

use proptest::collection::vec;
use proptest::prelude::*;

/// Programs; the first two are on host 0, the last on host 1.
pub const PROGRAMS: usize = 3;
/// What each of them can have open at a time.
pub const SLOTS: usize = 2;
/// NoDb processes, of which [`NEIGHBOUR_HOSTS`] says more.
pub const NEIGHBOURS: usize = 3;

/// Where a program runs.
pub fn host_of(program: usize) -> usize {
    program / 2
}

/// Through which mount a neighbour works: a modern one, one beside the mounts and also modern, an old one.
pub const NEIGHBOUR_HOSTS: [Option<usize>; NEIGHBOURS] = [Some(1), None, Some(0)];
/// The old one.
pub const OLD: usize = 2;

/// A name that programs use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The controller that everybody works on.
    A,
    /// Another controller.
    B,
    /// A plain file of the program's host: of others' changes to those the kernel hears late.
    Plain,
}

impl Name {
    /// Its place among the files: two controllers, one plain file for each host.
    pub fn place(self, program: usize) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
            Self::Plain => 2 + host_of(program),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Read,
    Write,
    /// For writing, with `O_TRUNC`.
    Truncate,
    /// For writing, with `O_CREAT | O_EXCL`.
    Create,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    Replace,
    NoReplace,
    Exchange,
}

/// One step. Those that write, write a document of the step's own number, or half of one.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Open {
        program: usize,
        slot: usize,
        name: Name,
        how: How,
    },
    Read {
        program: usize,
        slot: usize,
    },
    Write {
        program: usize,
        slot: usize,
        whole: bool,
    },
    Sync {
        program: usize,
        slot: usize,
    },
    Close {
        program: usize,
        slot: usize,
    },
    /// A new plain file.
    Put {
        program: usize,
        whole: bool,
    },
    Rename {
        program: usize,
        from: Name,
        to: Name,
        flag: Flag,
    },
    Unlink {
        program: usize,
        name: Name,
    },
    Lock {
        neighbour: usize,
    },
    Load {
        neighbour: usize,
    },
    Dump {
        neighbour: usize,
    },
    Unlock {
        neighbour: usize,
    },
    /// A controller's lock runs out, whoever holds it.
    Expire {
        name: Name,
    },
    /// The daemon is killed, the processes at its mount with it; then it is mounted again.
    Crash {
        host: usize,
    },
    /// Redis loses everything.
    Restart,
}

/// A sequence. Single steps, and habits of programs that chance would rarely put together.
pub fn sequences(habits: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Op>> {
    vec(habit(), habits).prop_map(|habits| habits.concat())
}

fn habit() -> impl Strategy<Value = Vec<Op>> {
    let (slot, program) = (0..SLOTS, 0..PROGRAMS);
    let neighbour = 0..NEIGHBOURS;
    let save = (
        program.clone(),
        slot.clone(),
        controller(),
        writing(),
        whole(),
    );
    let save =
        save.prop_map(|(program, slot, name, how, whole)| save_by(program, slot, name, how, whole));
    let replace = (program, controller(), whole(), flag());
    let replace = replace.prop_map(|(program, to, whole, flag)| {
        let from = Name::Plain;
        vec![
            Op::Put { program, whole },
            Op::Rename {
                program,
                from,
                to,
                flag,
            },
        ]
    });
    let update = neighbour.prop_map(update_by);
    let overtaken = (0..PROGRAMS, 0..PROGRAMS, controller(), prop::bool::ANY);
    let overtaken = overtaken.prop_map(|(late, early, name, neighbour)| {
        let (slot, other, whole, how) = (0, 1, true, How::Write);
        let mut ops = vec![
            Op::Open {
                program: late,
                slot,
                name,
                how,
            },
            Op::Expire { name },
        ];
        if neighbour {
            ops.extend(update_by(early));
        } else {
            ops.extend(save_by(early, other, name, how, whole));
        }
        ops.push(Op::Write {
            program: late,
            slot,
            whole,
        });
        ops.push(Op::Close {
            program: late,
            slot,
        });
        ops
    });
    prop_oneof![
        24 => step().prop_map(|op| vec![op]),
        3 => save,
        3 => replace,
        3 => update,
        2 => overtaken,
    ]
}

fn save_by(program: usize, slot: usize, name: Name, how: How, whole: bool) -> Vec<Op> {
    vec![
        Op::Open {
            program,
            slot,
            name,
            how,
        },
        Op::Write {
            program,
            slot,
            whole,
        },
        Op::Close { program, slot },
    ]
}

fn update_by(neighbour: usize) -> Vec<Op> {
    vec![
        Op::Lock { neighbour },
        Op::Load { neighbour },
        Op::Dump { neighbour },
        Op::Unlock { neighbour },
    ]
}

fn step() -> impl Strategy<Value = Op> {
    let opened = || (0..PROGRAMS, 0..SLOTS);
    let neighbour = || 0..NEIGHBOURS;
    let how = prop_oneof![2 => Just(How::Read), 3 => writing()];
    prop_oneof![
        8 => (opened(), controller(), how)
            .prop_map(|((program, slot), name, how)| Op::Open { program, slot, name, how }),
        4 => opened().prop_map(|(program, slot)| Op::Read { program, slot }),
        10 => (opened(), whole())
            .prop_map(|((program, slot), whole)| Op::Write { program, slot, whole }),
        8 => opened().prop_map(|(program, slot)| Op::Sync { program, slot }),
        3 => opened().prop_map(|(program, slot)| Op::Close { program, slot }),
        1 => (0..PROGRAMS, whole()).prop_map(|(program, whole)| Op::Put { program, whole }),
        3 => (0..PROGRAMS, name(), name(), flag())
            .prop_filter("two names", |(_, from, to, _)| from != to)
            .prop_map(|(program, from, to, flag)| Op::Rename { program, from, to, flag }),
        1 => (0..PROGRAMS, name()).prop_map(|(program, name)| Op::Unlink { program, name }),
        2 => neighbour().prop_map(|neighbour| Op::Lock { neighbour }),
        2 => neighbour().prop_map(|neighbour| Op::Load { neighbour }),
        2 => neighbour().prop_map(|neighbour| Op::Dump { neighbour }),
        1 => neighbour().prop_map(|neighbour| Op::Unlock { neighbour }),
        2 => controller().prop_map(|name| Op::Expire { name }),
        1 => prop_oneof![
            2 => (0..2usize).prop_map(|host| Op::Crash { host }),
            1 => Just(Op::Restart),
        ],
    ]
}

fn controller() -> impl Strategy<Value = Name> {
    prop_oneof![3 => Just(Name::A), 1 => Just(Name::B)]
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![2 => Just(Name::A), 1 => Just(Name::B), 2 => Just(Name::Plain)]
}

fn writing() -> impl Strategy<Value = How> {
    prop_oneof![3 => Just(How::Write), 2 => Just(How::Truncate), 1 => Just(How::Create)]
}

fn flag() -> impl Strategy<Value = Flag> {
    prop_oneof![3 => Just(Flag::Replace), 1 => Just(Flag::NoReplace), 2 => Just(Flag::Exchange)]
}

/// Whether a whole document is written.
fn whole() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.9)
}

/// What every sequence ends with: everything is closed and released, and each controller is saved once
/// more, whatever became of it.
pub fn epilogue() -> Vec<Op> {
    let mut ops = Vec::new();
    for program in 0..PROGRAMS {
        ops.extend((0..SLOTS).map(|slot| Op::Close { program, slot }));
    }
    ops.extend((0..NEIGHBOURS).map(|neighbour| Op::Unlock { neighbour }));
    for name in [Name::A, Name::B] {
        ops.push(Op::Expire { name });
        let (program, slot) = (0, 0);
        // one of the two succeeds, and the other says why not
        for how in [How::Create, How::Truncate] {
            ops.push(Op::Open {
                program,
                slot,
                name,
                how,
            });
        }
        ops.push(Op::Write {
            program,
            slot,
            whole: true,
        });
        ops.push(Op::Close { program, slot });
    }
    ops
}
