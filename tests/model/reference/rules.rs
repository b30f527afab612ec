//! The reference's rules: what each step may answer and what it leaves behind, from docs/SEMANTICS.md and from
//! what NoDb processes do.
//!
//! Where nodbfs is free to choose, a step has several outcomes; all that fit what was seen are gone on with.

use crate::op::{Flag, How, Name, OLD, Op};

use super::{Answer, File, Holder, Lease, Model, Neighbour, Open, Outcome, Text, Writer};

impl Model {
    /// What the step numbered `n` may come to; nothing if it cannot be tried.
    pub fn outcomes(&self, op: &Op, n: u64) -> Vec<Outcome> {
        match *op {
            Op::Open { program, slot, .. } if self.open[program][slot].is_some() => Vec::new(),
            Op::Open {
                program,
                slot,
                name,
                how,
            } => self.opening(program, slot, name, how),
            Op::Read { program, slot } => match self.open[program][slot] {
                Some(Open::Reader(text) | Open::Writer(Writer { text, .. })) => {
                    vec![(Answer::Read(text), self.clone())]
                }
                None => Vec::new(),
            },
            Op::Write {
                program,
                slot,
                whole,
            } => self.writing(program, slot, text(n, whole)),
            Op::Sync { program, slot } => self.syncing(program, slot),
            Op::Close { program, slot } => {
                let closed = |(answer, mut model): Outcome| {
                    model.end(program, slot);
                    (answer, model)
                };
                self.syncing(program, slot)
                    .into_iter()
                    .map(closed)
                    .collect()
            }
            Op::Put { program, whole } => self.done(|model| {
                model.publish(Name::Plain.place(program), text(n, whole));
            }),
            Op::Rename {
                program,
                from,
                to,
                flag,
            } => self.renaming(program, from, to, flag),
            Op::Unlink { program, name } => {
                let place = name.place(program);
                if self.files[place].is_none() {
                    return self.refusals(&["ENOENT"]);
                }
                self.under_locks(program, &[name], Vec::new(), |model| {
                    model.files[place] = None
                })
            }
            Op::Lock { neighbour } => match self.locks[0] {
                Some(_) => self.refusals(&["NoDbAlreadyLockedError"]),
                None => self.done(|model| {
                    model.locks[0] = Some(Holder::Neighbour(neighbour));
                    model.neighbours[neighbour].believes = true;
                }),
            },
            Op::Load { neighbour } => match self.files[0] {
                None => self.refusals(&["ENOENT"]),
                Some(file) => {
                    let mut model = self.clone();
                    model.neighbours[neighbour].loaded = Some(file.number);
                    vec![(Answer::Read(file.text), model)]
                }
            },
            Op::Dump { neighbour } => self.dumping(neighbour, Text::Document(n)),
            Op::Unlock { neighbour } => self.done(|model| {
                model.neighbours[neighbour].believes = false;
                if model.locks[0] == Some(Holder::Neighbour(neighbour)) {
                    model.locks[0] = None;
                }
            }),
            Op::Expire { name } => self.done(|model| model.expire(name)),
            Op::Crash { host } => self.done(|model| model.crash(host)),
            Op::Restart => self.done(|model| {
                model.expire(Name::A);
                model.expire(Name::B);
            }),
        }
    }

    fn opening(&self, program: usize, slot: usize, name: Name, how: How) -> Vec<Outcome> {
        let opened = |model: &Self, open| {
            let mut model = model.clone();
            model.open[program][slot] = Some(open);
            (Answer::Done, model)
        };
        let file = self.files[name.place(program)];
        let (file, text) = match (file, how) {
            (None, How::Create) => {
                let (base, text, lease) = (None, Text::Empty, Lease::None);
                let writer = Writer {
                    name,
                    base,
                    text,
                    written: false,
                    lease,
                };
                return vec![opened(self, Open::Writer(writer))];
            }
            (None, _) => return self.refusals(&["ENOENT"]),
            (Some(_), How::Create) => return self.refusals(&["EEXIST"]),
            (Some(file), How::Read) => return vec![opened(self, Open::Reader(file.text))],
            (Some(file), How::Write) => (file, file.text),
            (Some(file), How::Truncate) => (file, Text::Empty),
        };
        if let Some(objection) = self.lock_objection(program, name) {
            return self.refusals(&[objection]);
        }
        let mut model = self.clone();
        model.locks[name as usize] = Some(Holder::Program(program));
        let writer = Writer {
            name,
            base: Some(file.number),
            text,
            written: false,
            lease: Lease::Held,
        };
        vec![opened(&model, Open::Writer(writer))]
    }

    fn writing(&self, program: usize, slot: usize, text: Text) -> Vec<Outcome> {
        match self.open[program][slot] {
            None => Vec::new(),
            Some(Open::Reader(_)) => self.refusals(&["EBADF"]),
            Some(Open::Writer(writer)) => self.done(|model| {
                let written = Writer {
                    text,
                    written: true,
                    ..writer
                };
                model.open[program][slot] = Some(Open::Writer(written));
            }),
        }
    }

    /// `fsync`, and what `close` says: a commit, if something was written.
    fn syncing(&self, program: usize, slot: usize) -> Vec<Outcome> {
        let writer = match self.open[program][slot] {
            None => return Vec::new(),
            Some(Open::Writer(writer)) if writer.written => writer,
            Some(_) => return self.done(|_| ()),
        };
        let place = writer.name.place(program);
        let mut objections = Vec::new();
        if !matches!(writer.text, Text::Document(_)) {
            objections.push("EBADMSG");
        }
        if self.number(place) != writer.base {
            objections.push("ESTALE");
        }
        objections.extend(match writer.lease {
            Lease::Held => None,
            Lease::Lost => Some("ESTALE"),
            Lease::None => self.lock_objection(program, writer.name),
        });
        if objections.is_empty() {
            return self.done(|model| {
                model.publish(place, writer.text);
                model.give_back(program, slot);
                let written = Writer {
                    base: model.number(place),
                    written: false,
                    lease: Lease::None,
                    ..writer
                };
                model.open[program][slot] = Some(Open::Writer(written));
            });
        }
        let mut outcomes = self.refusals(&objections);
        // a lock that was taken for the commit may be kept for the next
        if writer.lease == Lease::None && !objections.contains(&"EBUSY") {
            let mut model = self.clone();
            model.locks[writer.name as usize] = Some(Holder::Program(program));
            let kept = Writer {
                lease: Lease::Held,
                ..writer
            };
            model.open[program][slot] = Some(Open::Writer(kept));
            outcomes.extend(model.refusals(&objections));
        }
        outcomes
    }

    fn renaming(&self, program: usize, from: Name, to: Name, flag: Flag) -> Vec<Outcome> {
        let (source, target) = (from.place(program), to.place(program));
        let (moved, replaced) = (self.files[source], self.files[target]);
        let Some(moved) = moved else {
            return self.refusals(&["ENOENT"]);
        };
        match (flag, replaced) {
            (Flag::NoReplace, Some(_)) => return self.refusals(&["EEXIST"]),
            (Flag::Exchange, None) => return self.refusals(&["ENOENT"]),
            _ => {}
        }
        let names = [from, to];
        let arrives =
            |name: Name, file: File| name != Name::Plain && !matches!(file.text, Text::Document(_));
        let mut objections = Vec::new();
        if arrives(to, moved) {
            objections.push("EBADMSG");
        }
        if flag == Flag::Exchange {
            if replaced.is_some_and(|file| arrives(from, file)) {
                objections.push("EBADMSG");
            }
            let mut outcomes = self.under_locks(program, &names, objections.clone(), |model| {
                model.files.swap(source, target)
            });
            if self.is_outdated(program, from) || self.is_outdated(program, to) {
                outcomes.extend(self.refusals(&["ESTALE"]));
            }
            return outcomes;
        }
        if self.is_outdated(program, to) {
            objections.push("ESTALE");
        }
        let mut outcomes = self.under_locks(program, &names, objections.clone(), |model| {
            model.files[target] = model.files[source].take();
        });
        if to != Name::Plain && replaced.is_some() && self.is_remembered(moved.number) {
            // it gets a later time if it was not later than the replaced one, and is another file then
            outcomes.extend(
                self.under_locks(program, &names, objections.clone(), |model| {
                    model.files[source] = None;
                    model.publish(target, moved.text);
                }),
            );
        }
        outcomes
    }

    /// A modern process looks whether the lock and the file are still its own; an old one only whether it
    /// took a lock once, and at the mount nodbfs looks who has it now.
    fn dumping(&self, neighbour: usize, text: Text) -> Vec<Outcome> {
        let Neighbour { believes, loaded } = self.neighbours[neighbour];
        let own = self.locks[0] == Some(Holder::Neighbour(neighbour));
        let modern = neighbour != OLD;
        let mut objections = Vec::new();
        if !believes || modern && !own {
            objections.push("NoDbLockLostError");
        } else if modern && self.files[0].is_some() && self.number(0) != loaded {
            objections.push("NoDbStaleWriteError");
        } else if !own && self.locks[0].is_some() {
            objections.push("EBUSY");
        }
        if !objections.is_empty() {
            return self.refusals(&objections);
        }
        self.done(|model| {
            model.publish(0, text);
            model.neighbours[neighbour].loaded = model.number(0);
        })
    }
}

fn text(n: u64, whole: bool) -> Text {
    if whole {
        Text::Document(n)
    } else {
        Text::Half(n)
    }
}
