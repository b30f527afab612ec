//! The reference's state: who has what open, loaded and locked, and what is on disk. It knows nothing of
//! files, daemons and Redis.

mod rules;

use crate::op::{NEIGHBOUR_HOSTS, NEIGHBOURS, Name, PROGRAMS, SLOTS, host_of};

/// The files there are, by [`Name::place`].
pub const FILES: usize = 4;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    Document(u64),
    /// Of a document: the beginning.
    Half(u64),
    Empty,
}

/// What a step says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Read(Text),
    /// An errno's name, or an exception's.
    Refused(String),
}

fn refused(why: &str) -> Answer {
    Answer::Refused(why.to_owned())
}

/// A file under a name. The number is another after each change of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct File {
    number: u64,
    text: Text,
}

/// Whose name is on a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// That of the host.
    Daemon(usize),
    Neighbour(usize),
    /// A process that was killed.
    Dead,
}

/// Who has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The daemon, for this program.
    Program(usize),
    Neighbour(usize),
    /// A process that was killed.
    Dead,
}

/// What an open writer has of its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    /// Its commit gave it back, or it never had one.
    None,
    Held,
    /// It ran out, and the writer is not to commit any more.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Reader(Text),
    Writer(Writer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    name: Name,
    /// The number of the file it was opened at; none for a new one.
    base: Option<u64>,
    text: Text,
    written: bool,
    lease: Lease,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Neighbour {
    /// Whether it believes to hold the lock.
    believes: bool,
    /// The number of the file it loaded.
    loaded: Option<u64>,
}

/// The state of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    files: [Option<File>; FILES],
    locks: [Option<Holder>; 2],
    open: [[Option<Open>; SLOTS]; PROGRAMS],
    neighbours: [Neighbour; NEIGHBOURS],
    numbers: u64,
}

/// What a step may say, and what is then.
pub type Outcome = (Answer, Model);

impl Model {
    /// Two controllers, documents 0 and 1.
    pub fn new() -> Self {
        let file = |number| {
            Some(File {
                number,
                text: Text::Document(number),
            })
        };
        Self {
            files: [file(0), file(1), None, None],
            locks: [None; 2],
            open: Default::default(),
            neighbours: Default::default(),
            numbers: 2,
        }
    }

    /// What is on disk, by place.
    pub fn texts(&self) -> [Option<Text>; FILES] {
        self.files.map(|file| file.map(|file| file.text))
    }

    /// Whose name is on the controllers' locks.
    pub fn locks(&self) -> [Option<Owner>; 2] {
        let owner = |holder| match holder {
            Holder::Program(program) => Owner::Daemon(host_of(program)),
            Holder::Neighbour(neighbour) => Owner::Neighbour(neighbour),
            Holder::Dead => Owner::Dead,
        };
        self.locks.map(|holder| holder.map(owner))
    }

    /// A change of names under the locks of the controllers among them, which are given back.
    fn under_locks(
        &self,
        program: usize,
        names: &[Name],
        mut objections: Vec<&'static str>,
        change: impl FnOnce(&mut Self),
    ) -> Vec<Outcome> {
        let controllers = names.iter().filter(|name| **name != Name::Plain);
        objections.extend(controllers.filter_map(|name| self.lock_objection(program, *name)));
        if objections.is_empty() {
            self.done(change)
        } else {
            self.refusals(&objections)
        }
    }

    /// Why a program is not given a controller's lock, unless it is: it may have it already, and share it.
    fn lock_objection(&self, program: usize, name: Name) -> Option<&'static str> {
        match self.locks[name as usize] {
            Some(Holder::Program(holder)) if holder == program => None,
            Some(_) => Some("EBUSY"),
            None => None,
        }
    }

    /// Whether the program has the controller open for writing as it was before.
    fn is_outdated(&self, program: usize, name: Name) -> bool {
        let now = self.number(name.place(program));
        self.writers(program)
            .any(|writer| writer.name == name && writer.base != now)
    }

    /// What the program has open for writing.
    pub fn writers(&self, program: usize) -> impl Iterator<Item = &Writer> {
        self.open[program]
            .iter()
            .flatten()
            .filter_map(|open| match open {
                Open::Writer(writer) => Some(writer),
                Open::Reader(_) => None,
            })
    }

    /// Whether anybody could tell the file from another with the same text.
    fn is_remembered(&self, number: u64) -> bool {
        let programs =
            (0..PROGRAMS).flat_map(|program| self.writers(program).map(|writer| writer.base));
        let neighbours = self.neighbours.iter().map(|neighbour| neighbour.loaded);
        programs
            .chain(neighbours)
            .any(|known| known == Some(number))
    }

    fn number(&self, place: usize) -> Option<u64> {
        self.files[place].map(|file| file.number)
    }

    fn publish(&mut self, place: usize, text: Text) {
        self.files[place] = Some(File {
            number: self.numbers,
            text,
        });
        self.numbers += 1;
    }

    /// The writer needs its lock no longer; it goes with the last of the program's writers.
    fn give_back(&mut self, program: usize, slot: usize) {
        let Some(Open::Writer(writer)) = &mut self.open[program][slot] else {
            return;
        };
        let (name, lease) = (
            writer.name,
            std::mem::replace(&mut writer.lease, Lease::None),
        );
        let shared = self
            .writers(program)
            .any(|other| other.name == name && other.lease == Lease::Held);
        if lease == Lease::Held && !shared {
            self.locks[name as usize] = None;
        }
    }

    fn end(&mut self, program: usize, slot: usize) {
        self.give_back(program, slot);
        self.open[program][slot] = None;
    }

    fn expire(&mut self, name: Name) {
        self.locks[name as usize] = None;
        for open in self.open.iter_mut().flatten().flatten() {
            match open {
                Open::Writer(writer) if writer.name == name && writer.lease == Lease::Held => {
                    writer.lease = Lease::Lost;
                }
                _ => {}
            }
        }
    }

    fn crash(&mut self, host: usize) {
        for program in (0..PROGRAMS).filter(|program| host_of(*program) == host) {
            self.open[program] = Default::default();
        }
        for neighbour in
            (0..NEIGHBOURS).filter(|neighbour| NEIGHBOUR_HOSTS[*neighbour] == Some(host))
        {
            self.neighbours[neighbour] = Neighbour::default();
        }
        for lock in self.locks.iter_mut().flatten() {
            let there = match *lock {
                Holder::Program(program) => Some(host_of(program)),
                Holder::Neighbour(neighbour) => NEIGHBOUR_HOSTS[neighbour],
                Holder::Dead => None,
            };
            if there == Some(host) {
                *lock = Holder::Dead;
            }
        }
    }

    fn done(&self, change: impl FnOnce(&mut Self)) -> Vec<Outcome> {
        let mut model = self.clone();
        change(&mut model);
        vec![(Answer::Done, model)]
    }

    /// Any of these reasons may be given, and everything stays as it is.
    fn refusals(&self, reasons: &[&str]) -> Vec<Outcome> {
        reasons
            .iter()
            .map(|why| (refused(why), self.clone()))
            .collect()
    }
}
