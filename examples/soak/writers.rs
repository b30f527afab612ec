//! Programs that write, each a process.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::Duration;

use crate::ground::Ground;
use crate::host::Host;
use crate::ledger::{Book, Company, Outcome};
use crate::program::{Done, Road, Task, is_gone};
use crate::sample::Rng;

/// A process of [`crate::program`]; killed when dropped.
struct Process {
    child: Child,
    tasks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn start() -> Self {
        let own = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(own)
            .arg("--program")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs");
        let tasks = child.stdin.take().expect("a pipe");
        let answers = BufReader::new(child.stdout.take().expect("a pipe"));
        Self {
            child,
            tasks,
            answers,
        }
    }

    /// `None`: it died on the way, killed after `kill` if that is given.
    fn perform(&mut self, task: &Task, kill: Option<Duration>) -> Option<Done> {
        let task = serde_json::to_string(task).expect("a task is JSON");
        writeln!(self.tasks, "{task}").ok()?;
        if let Some(kill) = kill {
            sleep(kill);
            let _ = self.child.kill();
            // what it was doing is over when it is gone
            let _ = self.child.wait();
        }
        let mut line = String::new();
        self.answers.read_line(&mut line).ok()?;
        serde_json::from_str(&line).ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program at one mount that adds its numbers by every road that holds the lock.
pub fn program(ground: &Ground, host: &Host, book: &Book, writer: &str, rng: Rng) {
    let mut process = Process::start();
    ground.work(writer, 40, rng, |rng| {
        // half a document now and then
        let road = Road::HELD[rng.int(0, 13) as usize % 4];
        let road = if road == Road::Torn && rng.int(0, 4) > 0 {
            Road::Sync
        } else {
            road
        };
        attempt(ground, host, book, writer, road, &mut process, rng);
    });
}

/// One program after the other, at one mount after the other.
pub fn relay(ground: &Ground, writer: &str, rng: Rng) {
    let book = ground.book(Company::Relay);
    let mut process = Process::start();
    ground.work(writer, 30, rng, |rng| {
        let host = &ground.hosts[rng.int(0, 2) as usize];
        let road = Road::FREE[rng.int(0, 4) as usize];
        attempt(ground, host, book, writer, road, &mut process, rng);
    });
}

fn attempt(
    ground: &Ground,
    host: &Host,
    book: &Book,
    writer: &str,
    road: Road,
    process: &mut Process,
    rng: &mut Rng,
) {
    let report = &ground.report;
    let task = Task {
        path: host.mount.join(&book.path),
        road,
        writer: writer.to_owned(),
        number: book.begin(writer),
        pause: Duration::from_millis(rng.int(-60, 20).max(0) as u64),
    };
    let (floor, epoch) = (book.floor(), host.epoch());
    // a program that it has started would live on
    let alone = !matches!(road, Road::Sed | Road::Copy);
    let kill =
        (alone && ground.is_condemned()).then(|| Duration::from_millis(rng.int(0, 30) as u64));
    let done = process.perform(&task, kill);
    let unharmed = host.is_unharmed_since(epoch);
    if kill.is_some() || done.is_none() {
        if kill.is_none() {
            report.violation(writer, "the program died by itself");
        }
        report.crash();
        *process = Process::start();
    }
    let read = done.as_ref().and_then(|done| done.read.as_ref());
    if let Some(text) = read {
        let again = || std::fs::read(&task.path);
        ground.observe(writer, book, &floor, text.as_bytes(), &again);
    }
    let outcome = match &done {
        None => Outcome::Unknown,
        Some(Done { errno: 0, .. }) if road == Road::Torn => {
            report.violation(
                writer,
                format!("{}: half a document was accepted", book.name),
            );
            Outcome::Unknown
        }
        Some(Done { errno: 0, .. }) => {
            report.commit();
            Outcome::Acknowledged
        }
        Some(done) => {
            let before = ["open", "read", "parse", "draft"].contains(&done.at.as_str());
            match done.errno {
                libc::EBUSY | libc::ESTALE | libc::ENOLCK => {
                    report.refusal(done.errno);
                    Outcome::Refused
                }
                libc::EBADMSG if road == Road::Torn => {
                    report.refusal(done.errno);
                    Outcome::Refused
                }
                // what was read has been judged
                libc::EILSEQ if done.at == "parse" => Outcome::Refused,
                errno if is_gone(errno) && !unharmed => {
                    if before {
                        Outcome::Refused
                    } else {
                        Outcome::Unknown
                    }
                }
                errno => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    let words = format!("{}: {road:?}: {}: {error}", book.name, done.at);
                    report.violation(writer, format!("{words}, at {}", host.name));
                    Outcome::Unknown
                }
            }
        }
    };
    // a daemon that died perhaps did so between publication and refresh (docs/FAILURES.md)
    let loose = matches!(outcome, Outcome::Unknown) && !unharmed;
    book.end(writer, task.number, outcome, loose);
}

/// A program that would like to have what a stranger holds.
pub fn knocker(ground: &Ground, writer: &str, rng: Rng) {
    let book = ground.book(Company::Stranger);
    ground.work(writer, 400, rng, |rng| {
        let host = &ground.hosts[rng.int(0, 2) as usize];
        let (wipes, epoch) = (ground.wipes.load(SeqCst), host.epoch());
        let opened = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(host.mount.join(&book.path));
        let locked = wipes.is_multiple_of(2) && ground.wipes.load(SeqCst) == wipes;
        match opened.map_err(|error| error.raw_os_error().unwrap_or(0)) {
            Ok(_) if locked => ground
                .report
                .violation(writer, "opened for writing what a stranger has locked"),
            Ok(_) => {}
            Err(errno @ (libc::EAGAIN | libc::EBUSY | libc::ENOLCK)) => {
                ground.report.refusal(errno)
            }
            Err(errno) if is_gone(errno) && !host.is_unharmed_since(epoch) => {}
            Err(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                ground
                    .report
                    .violation(writer, format!("{}: {error}", book.name));
            }
        }
    });
}
