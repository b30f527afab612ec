//! The real thing: two mounts of one directory, as on two hosts, on one Redis; programs at the mounts and
//! NoDb processes at and beside them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use nodbfs::nodb::lock::NEWS;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::command::nodbfs;
use crate::common::mount::Mount;
use crate::common::program::Program;
use crate::common::python::{Neighbour, Place, Style};
use crate::common::redis::RedisServer;
use crate::common::run::eventually;
use crate::op::{Flag, How, NEIGHBOUR_HOSTS, NEIGHBOURS, Name, OLD, Op, PROGRAMS, host_of};
use crate::reference::{Answer, FILES, Owner, Text};

/// By [`Name::place`].
const NAMES: [&str; FILES] = ["a.nodb", "b.nodb", "plain-0.json", "plain-1.json"];
/// A controller of none of the runs.
const PROBE: &str = "probe.nodb";
const CONTROLLERS: [&str; 2] = [NAMES[0], NAMES[1]];

pub struct World {
    neighbours: Vec<Neighbour>,
    programs: Vec<Program>,
    mounts: Vec<Mount>,
    redis: RedisServer,
    dir: TempDir,
    /// The run of this case.
    run: String,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("runs")).unwrap();
        fs::write(dir.path().join("runs").join(PROBE), "{}").unwrap();
        let mut world = Self {
            neighbours: Vec::new(),
            programs: Vec::new(),
            mounts: Vec::new(),
            redis: RedisServer::start(),
            dir,
            run: String::new(),
        };
        world.mounts = (0..2).map(|host| world.mount(host)).collect();
        let spawned =
            (0..PROGRAMS).map(|program| Program::spawn(world.mounts[host_of(program)].path()));
        world.programs = spawned.collect();
        world.neighbours = (0..NEIGHBOURS)
            .map(|number| world.neighbour(number))
            .collect();
        world
    }

    fn mount(&self, host: usize) -> Mount {
        // nobody waits for a lock, and a lease runs out when the test says so
        let args = ["--lock-wait", "0s", "--lease-ttl", "1h"];
        Mount::builder(self.dir.path().join("runs"))
            .state_dir(self.dir.path().join(format!("state-{host}")))
            .redis(&self.redis.unix_url())
            .args(args)
            .start()
    }

    /// A run of the case's own, with documents 0 and 1.
    pub fn begin(&mut self, case: u64) {
        self.run = format!("case{case}");
        fs::create_dir(self.source()).unwrap();
        for (n, name) in CONTROLLERS.iter().enumerate() {
            fs::write(self.source().join(name), written(Text::Document(n as u64))).unwrap();
        }
        for program in 0..PROGRAMS {
            let dir = self.at(host_of(program));
            self.programs[program].enter(&dir);
        }
        for number in 0..NEIGHBOURS {
            let (wd, key_wd) = (self.wd(number), self.source());
            self.neighbours[number].ok(json!({"op": "move", "wd": wd, "key_wd": key_wd}));
        }
    }

    fn neighbour(&self, number: usize) -> Neighbour {
        let style = if number == OLD {
            Style::Old
        } else {
            Style::Modern
        };
        let url = self.redis.unix_url();
        let (wd, key_wd) = (self.wd(number), self.source());
        let mut neighbour = Neighbour::spawn(style, &wd, &key_wd, "a", &url, Place::Host);
        neighbour.ok(json!({"op": "move", "wd": wd, "key_wd": key_wd}));
        neighbour
    }

    /// Where the neighbour has the run.
    fn wd(&self, neighbour: usize) -> PathBuf {
        NEIGHBOUR_HOSTS[neighbour].map_or_else(|| self.source(), |host| self.at(host))
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("runs").join(&self.run)
    }

    fn at(&self, host: usize) -> PathBuf {
        self.mounts[host].path().join(&self.run)
    }

    /// What the daemons have logged.
    pub fn logs(&self) -> String {
        let logs = self.mounts.iter().enumerate();
        logs.map(|(host, mount)| format!("--- host {host}\n{}", mount.log()))
            .collect()
    }

    /// Does it, and says what came of it. `n` is the step's number.
    pub fn act(&mut self, op: &Op, n: u64) -> Answer {
        self.settle_names(op);
        match *op {
            Op::Open {
                program,
                slot,
                name,
                how,
            } => {
                let flags = match how {
                    How::Read => libc::O_RDONLY,
                    How::Write => libc::O_RDWR,
                    How::Truncate => libc::O_RDWR | libc::O_TRUNC,
                    How::Create => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
                };
                let name = NAMES[name.place(program)];
                self.program(
                    program,
                    json!({"op": "open", "slot": slot, "name": name, "flags": flags}),
                )
            }
            Op::Read { program, slot } => {
                self.program(program, json!({"op": "read", "slot": slot}))
            }
            Op::Write {
                program,
                slot,
                whole,
            } => {
                let text = text(n, whole);
                self.program(program, json!({"op": "write", "slot": slot, "text": text}))
            }
            Op::Sync { program, slot } => {
                self.program(program, json!({"op": "fsync", "slot": slot}))
            }
            Op::Close { program, slot } => {
                self.program(program, json!({"op": "close", "slot": slot}))
            }
            Op::Put { program, whole } => {
                let (name, text) = (NAMES[Name::Plain.place(program)], text(n, whole));
                self.program(program, json!({"op": "put", "name": name, "text": text}))
            }
            Op::Rename {
                program,
                from,
                to,
                flag,
            } => {
                let flags = match flag {
                    Flag::Replace => 0,
                    Flag::NoReplace => libc::RENAME_NOREPLACE,
                    Flag::Exchange => libc::RENAME_EXCHANGE,
                };
                let (source, target) = (NAMES[from.place(program)], NAMES[to.place(program)]);
                let rename =
                    json!({"op": "rename", "source": source, "target": target, "flags": flags});
                self.program(program, rename)
            }
            Op::Unlink { program, name } => {
                let name = NAMES[name.place(program)];
                self.program(program, json!({"op": "unlink", "name": name}))
            }
            Op::Lock { neighbour } => self.ask(neighbour, json!({"op": "lock"})),
            Op::Load { neighbour } => match self.ask(neighbour, json!({"op": "reload"})) {
                Answer::Done => {
                    let n = self.neighbours[neighbour].get("_n");
                    Answer::Read(Text::Document(n.as_u64().expect("a number")))
                }
                refused => refused,
            },
            Op::Dump { neighbour } => {
                self.ask(neighbour, json!({"op": "set", "key": "_n", "value": n}));
                self.ask(neighbour, json!({"op": "dump"}))
            }
            Op::Unlock { neighbour } => self.ask(neighbour, json!({"op": "unlock"})),
            Op::Expire { name } => {
                let key = self.lock_key(CONTROLLERS[name as usize]);
                self.redis.cmd(&["PEXPIRE", &key, "1"]);
                eventually("a lock runs out", || {
                    self.redis.text(&["GET", &key]).is_none()
                });
                // nobody believes what Redis said of it before
                thread::sleep(2 * NEWS);
                Answer::Done
            }
            Op::Crash { host } => self.crash(host),
            Op::Restart => {
                self.redis.restart();
                self.await_recovery();
                Answer::Done
            }
        }
    }

    /// Nobody waits for the last close of a writer, and until the daemon has heard of it, what the program brings by
    /// a rename may be an outdated writer's.
    pub fn await_writers(&self, program: usize, most: usize) {
        let pid = self.programs[program].pid();
        let mount = self.mounts[host_of(program)].path();
        eventually("the daemon hears of a close", || {
            let status = nodbfs(&["status".as_ref(), "--json".as_ref(), mount.as_os_str()]).json();
            let open = status[0]["status"]["controllers"]["writers"].as_array();
            let own = open.expect("a list").iter().filter(|writer| {
                let path = Path::new(writer["path"].as_str().expect("a path"));
                writer["pid"] == pid && path.starts_with(&self.run)
            });
            own.count() <= most
        });
    }

    fn program(&mut self, program: usize, request: Value) -> Answer {
        match self.programs[program].call(request) {
            Ok(None) => Answer::Done,
            Ok(Some(text)) => Answer::Read(read(&text)),
            Err(errno) => Answer::Refused(errno),
        }
    }

    fn ask(&mut self, neighbour: usize, request: Value) -> Answer {
        let answer = self.neighbours[neighbour].call(request);
        if answer["ok"] == true {
            return Answer::Done;
        }
        let why = match answer["errno"].as_i64() {
            Some(2) => "ENOENT",
            Some(16) => "EBUSY",
            Some(_) => &answer["message"].to_string(),
            None => answer["error"].as_str().expect("an exception has a class"),
        };
        Answer::Refused(why.to_owned())
    }

    /// What was done elsewhere reaches what the kernel remembers of names and attributes within moments, and
    /// some steps rely on these.
    fn settle_names(&self, op: &Op) {
        let host = match *op {
            Op::Open {
                program,
                how: How::Create,
                ..
            }
            | Op::Rename {
                program,
                flag: Flag::NoReplace,
                ..
            } => Some(host_of(program)),
            Op::Dump { neighbour } => NEIGHBOUR_HOSTS[neighbour],
            _ => None,
        };
        let Some(host) = host else { return };
        for name in CONTROLLERS {
            let look = |dir: PathBuf| {
                let stat = fs::metadata(dir.join(name)).ok()?;
                Some((stat.len(), stat.modified().ok()?))
            };
            eventually("the kernel hears of a change", || {
                look(self.at(host)) == look(self.source())
            });
        }
    }

    /// A daemon that was just refused by Redis does not ask it again at once.
    fn await_recovery(&self) {
        for mount in &self.mounts {
            let probe = mount.path().join(PROBE);
            let open = || fs::File::options().write(true).open(&probe);
            eventually("Redis is asked again", || open().is_ok());
        }
    }

    fn crash(&mut self, host: usize) -> Answer {
        self.mounts[host].crash();
        self.mounts[host] = self.mount(host);
        let dir = self.at(host);
        for program in (0..PROGRAMS).filter(|program| host_of(*program) == host) {
            self.programs[program].enter(&dir);
        }
        for number in (0..NEIGHBOURS).filter(|number| NEIGHBOUR_HOSTS[*number] == Some(host)) {
            self.neighbours[number] = self.neighbour(number);
        }
        Answer::Done
    }

    /// What is on disk, by place.
    pub fn texts(&self) -> [Option<Text>; FILES] {
        NAMES.map(|name| {
            fs::read_to_string(self.source().join(name))
                .ok()
                .map(|text| read(&text))
        })
    }

    /// What old NoDb processes would believe of each controller.
    pub fn entries(&self) -> [Option<Text>; 2] {
        let entry = |name| self.redis.text_in(13, &["GET", &self.entry_key(name)]);
        CONTROLLERS.map(|name| entry(name).map(|text| read(&text)))
    }

    /// Whose name is on the controllers' locks.
    pub fn locks(&self) -> [Option<Owner>; 2] {
        CONTROLLERS.map(|name| {
            let lock = self.redis.text(&["GET", &self.lock_key(name)])?;
            let lock: Value = serde_json::from_str(&lock).expect("a lock is JSON");
            let owner = lock["owner"].as_str().expect("a lock has an owner");
            let (_, pid) = owner.rsplit_once(':').expect("a host and a pid");
            let pid: u32 = pid.parse().expect("a pid");
            let daemon = self.mounts.iter().position(|mount| mount.pid() == pid);
            let neighbour = self
                .neighbours
                .iter()
                .position(|neighbour| neighbour.pid() == pid);
            let found = daemon
                .map(Owner::Daemon)
                .or(neighbour.map(Owner::Neighbour));
            Some(found.unwrap_or(Owner::Dead))
        })
    }

    /// After the last save: both mounts show what is on disk, byte for byte, the cache has it with the file's
    /// signature, the lock is free, and the mirror flag says so.
    pub fn assert_settled(&self) {
        for name in CONTROLLERS {
            let path = self.source().join(name);
            let bytes = fs::read(&path).unwrap();
            for host in 0..2 {
                let shown = fs::read(self.at(host).join(name)).unwrap();
                assert!(shown == bytes, "{name} through mount {host}");
            }
            let entry = self.redis.text_in(13, &["GET", &self.entry_key(name)]);
            let entry: Value = serde_json::from_str(&entry.expect("an entry")).unwrap();
            let document: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(entry["_n"], document["_n"]);
            let stat = fs::metadata(&path).unwrap();
            assert_eq!(entry["_nodb_size"], stat.len());
            let mtime = stat.mtime() as f64 + 1e-9 * stat.mtime_nsec() as f64;
            assert!((entry["_nodb_mtime"].as_f64().unwrap() - mtime).abs() <= 1e-6);
            assert_eq!(self.redis.text(&["GET", &self.lock_key(name)]), None);
            let flag = self
                .redis
                .text(&["HGET", &self.run, &format!("locked:{name}")]);
            assert_eq!(flag.as_deref(), Some("false"), "the mirror flag of {name}");
        }
    }

    fn lock_key(&self, name: &str) -> String {
        format!("nodb-lock:{}:{name}", self.run)
    }

    fn entry_key(&self, name: &str) -> String {
        self.source().join(name).to_str().unwrap().to_owned()
    }
}

fn text(n: u64, whole: bool) -> String {
    written(if whole {
        Text::Document(n)
    } else {
        Text::Half(n)
    })
}

fn written(text: Text) -> String {
    match text {
        Text::Document(n) => format!("{{\"py/object\": \"wepppy.nodb.A\", \"_n\": {n}}}"),
        Text::Half(n) => format!("{{\"_n\": {n}"),
        Text::Empty => String::new(),
    }
}

/// Which of the texts it is, whatever else stands in it.
fn read(text: &str) -> Text {
    let half = || text.strip_prefix("{\"_n\": ")?.parse().ok();
    match serde_json::from_str::<Value>(text) {
        Ok(document) => Text::Document(document["_n"].as_u64().expect("a number")),
        Err(_) if text.is_empty() => Text::Empty,
        Err(_) => Text::Half(half().unwrap_or_else(|| panic!("torn: {text:?}"))),
    }
}
