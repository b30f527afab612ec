//! One failure at one step of one road.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nodbfs::step::Step;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::mount::{Builder, Mount};
use crate::common::redis::RedisServer;
use crate::process::Process;
use crate::roads::{EFFECTLESS, Failure, GAPS, Road, state};
use crate::site::PATIENCE;

/// Short where somebody has to wait for its end, and yet long enough for a commit on a busy machine.
const SHORT_LEASE: &str = "1s";
/// Where nobody has to.
const LEASE: &str = "60s";

/// Where the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Redis,
    Embedded,
}

/// What the runs of all cases share.
pub struct Field {
    redis: RedisServer,
    // before the directory that it shows
    witness: Mount,
    dir: TempDir,
}

impl Field {
    pub fn new() -> Self {
        let redis = RedisServer::start();
        let dir = tempfile::tempdir().unwrap();
        for name in ["shared", "alone"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let witness = Mount::builder(dir.path().join("shared")).redis(&redis.url());
        Self {
            witness: witness.args(["--lock-wait", "0s"]).start(),
            redis,
            dir,
        }
    }
}

/// A writer and an observer, for one case after the other.
pub struct Worker {
    writer: Process,
    observer: Process,
}

impl Worker {
    pub fn new() -> Self {
        Self {
            writer: Process::start("writer.py"),
            observer: Process::start("observer.py"),
        }
    }
}

/// The `time`th time that a road reaches a step, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub step: Step,
    pub time: usize,
}

/// A road on a store, and what fails; without a failure it is only looked which steps it takes.
#[derive(Clone, Copy)]
pub struct Case {
    pub number: usize,
    pub road: &'static Road,
    pub store: Store,
    pub failure: Option<(Moment, Failure)>,
}

/// What came of it.
#[derive(Default)]
pub struct Outcome {
    /// Broken promises, in words.
    pub broken: Vec<String>,
    /// The known gaps that showed, by their number.
    pub gaps: Vec<usize>,
    pub told: String,
    pub reached: Vec<Step>,
}

impl Case {
    pub fn describe(&self) -> String {
        let failure = self.failure.map_or_else(String::new, |(moment, failure)| {
            let (step, time) = (moment.step.name(), moment.time + 1);
            format!(", {} at {step} {time}", failure.name())
        });
        format!("{}, {:?}{failure}", self.road.name, self.store)
    }

    /// What the daemon is told. All that is reached is logged.
    fn failpoints(&self) -> String {
        let mut points = BTreeMap::<&str, Vec<String>>::new();
        let mut happens = |step: Step, before: usize, failure: Failure| {
            let actions = points.entry(step.name()).or_default();
            if before > 0 {
                actions.push(format!("{before}*return(pass)"));
            }
            actions.push(format!("1*return({})", failure.name()));
        };
        if let Some((step, failure)) = self.road.preset {
            happens(step, 0, failure);
        }
        if let Some((moment, failure)) = self.failure {
            let preset = self
                .road
                .preset
                .is_some_and(|(step, _)| step == moment.step);
            happens(moment.step, moment.time - usize::from(preset), failure);
        }
        let points = Step::ALL.iter().map(|step| {
            let mut actions = points.remove(step.name()).unwrap_or_default();
            actions.push("return(pass)".to_owned());
            format!("{}={}", step.name(), actions.join("->"))
        });
        points.collect::<Vec<_>>().join(";")
    }

    fn happens(&self, wanted: Failure) -> usize {
        let preset = self.road.preset.map(|(_, failure)| failure);
        let own = self.failure.map(|(_, failure)| failure);
        [preset, own]
            .into_iter()
            .flatten()
            .filter(|failure| *failure == wanted)
            .count()
    }

    fn mount(&self, field: &Field, run: &Path) -> Builder {
        let waited_for = self.happens(Failure::Kill) + self.happens(Failure::Stop) > 0;
        let lease = if waited_for { SHORT_LEASE } else { LEASE };
        let mut builder = Mount::builder(run).args(["--lease-ttl", lease, "--lock-wait", "0s"]);
        if self.store == Store::Redis {
            builder = builder.redis(&field.redis.url());
        }
        builder
    }

    /// Runs it. An error: it could not be brought to its end.
    pub fn run(&self, field: &Field, worker: &mut Worker, again: usize) -> Result<Outcome, String> {
        let Worker { writer, observer } = worker;
        let name = format!("run-{}-{again}", self.number);
        let (tree, redis, beside) = match self.store {
            Store::Redis => {
                let beside = field.witness.path().join(&name);
                ("shared", Some(field.redis.url()), Some(beside))
            }
            Store::Embedded => ("alone", None, None),
        };
        let run = field.dir.path().join(tree).join(name);
        let mut outcome = Outcome::default();
        let mut ask = |request: Value| -> Result<Value, String> {
            let answer = observer.call(&request)?;
            for broken in answer["broken"].as_array().into_iter().flatten() {
                let during = request["op"].as_str().unwrap_or_default();
                outcome
                    .broken
                    .push(format!("{during}: {}", broken.as_str().unwrap_or_default()));
            }
            Ok(answer)
        };
        ask(json!({
            "op": "prepare", "run": run, "redis": redis, "beside": beside, "watched": self.number.is_multiple_of(2),
            "old": state(self.road.before, None), "contested": self.road.before[0].0, "leftover": self.road.leftover,
        }))?;
        let state_dir = field
            .dir
            .path()
            .join(format!("state-{}-{again}", self.number));
        let daemon = || self.mount(field, &run).state_dir(&state_dir);
        let mut mount = daemon().failpoints(&self.failpoints()).start();

        writer.send(&json!({"road": self.road.call, "at": mount.path()}));
        let mut contested = None;
        let states = |contested| {
            let [before, after] = [self.road.before, self.road.after];
            vec![state(before, contested), state(after, contested)]
        };
        let between = |contested| {
            self.road
                .between
                .iter()
                .map(move |&it| state(it, contested))
        };
        let gaps: Vec<_> = (0..GAPS.len())
            .filter(|&number| {
                self.failure.is_some_and(|(moment, failure)| {
                    GAPS[number].covers(self.road, moment.step, failure)
                })
            })
            .collect();
        let shown: Vec<_> = gaps
            .iter()
            .flat_map(|&number| GAPS[number].shown)
            .map(|&it| state(it, None))
            .collect();
        let left = gaps.iter().any(|&number| GAPS[number].left);
        for n in 0..self.happens(Failure::Stop) {
            wait_for("stops", || is_stopped(&mount))?;
            // what has been published may show for a moment beside what a neighbour has made of it
            let mut allowed = states(contested);
            allowed.extend(states(None));
            allowed.extend(between(None));
            ask(json!({"op": "frozen", "allowed": allowed, "gap": shown}))?;
            let n = 2 + n as u8;
            if ask(json!({"op": "take_over", "n": n}))?["committed"] == true {
                contested = Some(n);
            }
            mount.signal(Signal::CONT);
        }
        let told = writer.answer()?;
        let told: Vec<_> = told["told"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        outcome.told = told.join(" ");
        let saved = told.contains(&"ok");
        if contested.is_some() {
            ask(json!({"op": "give_back"}))?;
        }

        let killed = self.happens(Failure::Kill) > 0;
        let ended = self.happens(Failure::End) > 0;
        let mut allowed = states(contested);
        if saved {
            allowed.remove(0);
        } else if !killed {
            allowed.remove(1);
        }
        if killed || left || contested.is_some() {
            allowed.extend(between(contested));
        }
        let mut gap = false;
        let mut stale = false;
        if killed {
            let status = mount.wait().ok_or("the daemon is not killed")?;
            if status.signal() != Some(libc::SIGKILL) {
                return Err(format!("the daemon ended otherwise: {status}"));
            }
            let frozen = ask(json!({"op": "frozen", "allowed": allowed, "gap": shown}))?;
            stale |= frozen["stale"] == true;
            gap |= frozen["gap"] == true;
        } else if ended {
            let status = mount.wait().ok_or("the daemon does not end")?;
            if !status.success() {
                return Err(format!("the daemon ended otherwise: {status}"));
            }
        } else if let Some((moment, _)) = self.failure {
            wait_for("reaches the step", || {
                let times = reached(&mount).into_iter();
                times.filter(|step| *step == moment.step).count() > moment.time
            })?;
        }
        if killed || ended || left {
            drop(mount);
            mount = daemon().start();
        }
        let settled = ask(json!({
            "op": "settled", "allowed": allowed, "gap": shown, "mount": mount.path(),
            "debts": state_dir.join("debts"), "killed": killed,
        }))?;
        stale |= settled["stale"] == true;
        gap |= settled["gap"] == true;
        if self.failure.is_none() {
            let taken = |mount, wanted| {
                reached(mount)
                    .iter()
                    .filter(|&&step| step == wanted)
                    .count()
            };
            wait_for("releases what it has acquired", || {
                taken(&mount, Step::Release) >= taken(&mount, Step::Acquired)
            })?;
        }
        outcome.reached = reached(&mount);
        ask(json!({"op": "goes_on", "mount": mount.path()}))?;
        if stale && !gaps.iter().any(|&number| GAPS[number].stale) {
            let words = "an old neighbour believes a stale entry";
            outcome.broken.push(words.to_owned());
        }
        outcome.gaps = gaps;
        outcome.gaps.retain(|&number| {
            let known = &GAPS[number];
            (known.stale && stale) || known.left || (!known.shown.is_empty() && gap)
        });
        if !outcome.broken.is_empty() {
            outcome.broken.push(mount.log());
        }
        drop(mount);
        fs::remove_dir_all(&run).map_err(|error| error.to_string())?;
        Ok(outcome)
    }
}

/// Whether a step can fail in this way on this store.
pub fn is_possible(step: Step, failure: Failure, road: &Road, store: Store) -> bool {
    let stops =
        [Some(failure), road.preset.map(|(_, failure)| failure)].contains(&Some(Failure::Stop));
    // without Redis nobody else can take a lock over
    let cannot_fail = failure == Failure::Error && EFFECTLESS.contains(&step);
    let cannot_stop = stops && store == Store::Embedded;
    !cannot_fail && !cannot_stop
}

/// The steps that the daemon has reached, in order.
fn reached(mount: &Mount) -> Vec<Step> {
    let log = mount.log();
    let lines = log.lines().filter(|line| line.contains("reached"));
    let names = lines.filter_map(|line| Some(line.split_once("step=\"")?.1.split_once('"')?.0));
    names
        .filter_map(|name| Step::ALL.iter().copied().find(|step| step.name() == name))
        .collect()
}

fn is_stopped(mount: &Mount) -> bool {
    fs::read_to_string(format!("/proc/{}/status", mount.pid()))
        .is_ok_and(|status| status.contains("State:\tT"))
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > PATIENCE {
            return Err(format!("the daemon never {what}"));
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}
