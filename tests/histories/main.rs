//! What concurrent clients of two mounts and NoDb processes see and are told, on real files and a real Redis,
//! while daemons are stopped or killed, locks taken away and connections cut, is what one register would have
//! shown them, one after the other (promises 2, 5, 6 and 7).

mod clients;
#[path = "../common/mod.rs"]
mod common;
mod history;
#[path = "../common/site.rs"]
mod site;
#[path = "../common/tracer.rs"]
mod tracer;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use common::mount::Mount;
use common::python::{Neighbour, Place, Style};
use common::redis::RedisServer;
use rustix::process::Signal;
use tempfile::TempDir;

use clients::{NAME, Work, document, loader, mark_in, program, reader, updater};
use history::{Did, Glimpses, judge};
use tracer::{Tracer, is_root};

/// How often something happens to daemons or Redis at least, and how many commits must have been acknowledged.
const ROUNDS: usize = 14;
const COMMITS: usize = 60;

const LOCK: &str = "nodb-lock:run:marks.nodb";

/// Two hosts with the same run.
struct Field {
    mounts: Vec<Mount>,
    work: Arc<Work>,
    redis: RedisServer,
    dir: TempDir,
    args: Vec<&'static str>,
}

impl Field {
    fn new(args: &[&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("run").join(NAME), document(0)).unwrap();
        let mut field = Self {
            mounts: Vec::new(),
            work: Arc::new(Work::new()),
            redis: RedisServer::start(),
            dir,
            args: args.to_vec(),
        };
        field.mounts = vec![field.mount(0), field.mount(1)];
        field
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn mount(&self, host: usize) -> Mount {
        let mount = Mount::builder(self.source())
            .state_dir(self.dir.path().join(format!("state-{host}")))
            .redis(&self.redis.url())
            .args(&self.args)
            .start();
        *self.work.hosts[host].path.write().unwrap() = mount.path().to_owned();
        mount
    }

    /// At a mount, or beside both.
    fn neighbour(&self, style: Style, host: Option<usize>) -> Neighbour {
        let wd = host.map_or_else(|| self.source(), |host| self.mounts[host].path().to_owned());
        let url = self.redis.unix_url();
        Neighbour::spawn(style, &wd, &self.source(), "marks", &url, Place::Host)
    }

    /// Takes the lock away, unless a NoDb process has it: that looks long before it publishes.
    fn take_lock_away(&self) {
        let Some(lock) = self.redis.text(&["GET", LOCK]) else {
            return;
        };
        let daemons = self
            .mounts
            .iter()
            .map(|mount| format!(":{}\"", mount.pid()));
        if daemons.into_iter().any(|owner| lock.contains(&owner)) {
            let script =
                "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end";
            self.redis.cmd(&["EVAL", script, "1", LOCK, &lock]);
        }
    }

    /// Cuts the daemons' connections. The NoDb processes have a socket of their own.
    fn cut_connections(&self) {
        let clients = self.redis.text(&["CLIENT", "LIST"]).unwrap();
        for client in clients
            .lines()
            .filter(|client| client.contains(" addr=127.0.0.1:"))
        {
            let id = client.trim_start_matches("id=").split(' ').next().unwrap();
            // it may be gone by now
            self.redis.cmd(&["CLIENT", "KILL", "ID", id]);
        }
    }

    /// Waits for the host to be in the middle of a commit, if it gets there.
    fn await_commit(&self, host: usize, moment: usize) {
        let patience = Instant::now() + Duration::from_millis(500);
        while self.work.hosts[host].committing.load(Relaxed) == 0 && Instant::now() < patience {
            thread::sleep(Duration::from_micros(50));
        }
        thread::sleep(Duration::from_micros(moment as u64 * 397 % 3000));
    }

    /// Lets the clients work through rounds of `chaos`, and judges what they saw; then everybody sees the same.
    fn judge(
        mut self,
        clients: Vec<Client>,
        glimpses: Glimpses,
        mut chaos: impl FnMut(&mut Self, usize),
    ) {
        let work = self.work.clone();
        thread::scope(|scope| {
            for client in clients {
                scope.spawn(|| client(&work));
            }
            let _end = End(&work.going_on);
            let mut rounds = 0;
            while rounds < ROUNDS || work.recorder.committed() < COMMITS {
                assert!(rounds < 500, "no progress");
                chaos(&mut self, rounds);
                rounds += 1;
            }
        });
        let mounts = self.mounts.iter().map(|mount| mount.path().to_owned());
        for place in mounts.chain([self.source()]) {
            let call = work.recorder.now();
            let mark = mark_in(&fs::read_to_string(place.join(NAME)).unwrap());
            work.recorder.returned(call, Did::Read(mark));
        }
        let logs = || self.mounts.iter().map(Mount::log).collect::<String>();
        let counts = judge(&work.recorder.events(), glimpses);
        let counts = counts.unwrap_or_else(|wrong| panic!("{wrong}\n{}", logs()));
        println!("[commits, refusals, open commits, reads, glimpses]: {counts:?}");
    }
}

/// Works until it is told to stop.
type Client = Box<dyn FnOnce(&Work) + Send>;

/// Tells the clients to stop, after a failure too.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// Two programs and a reader at each mount.
fn at_the_mounts() -> Vec<Client> {
    let mut clients: Vec<Client> = Vec::new();
    for host in 0..2 {
        for turn in 0..2 {
            clients.push(Box::new(move |work| program(work, host, 2 * host + turn)));
        }
        clients.push(Box::new(move |work| reader(work, host)));
    }
    clients
}

/// NoDb processes do not write here: one that has checked its lock publishes whatever has become of it since, and
/// what a stopped daemon publishes in between would be lost, mount or not.
#[test]
fn with_stopped_daemons_and_lost_locks_the_history_is_one_of_a_register() {
    let field = Field::new(&["--lease-ttl", "200ms", "--lock-wait", "20s"]);
    let mut clients = at_the_mounts();
    let modern = field.neighbour(Style::Modern, None);
    clients.push(Box::new(move |work| loader(work, modern, Did::Read)));
    field.judge(clients, Glimpses::Allowed, |field, round| {
        let host = round % 2;
        field.await_commit(host, round);
        field.mounts[host].signal(Signal::STOP);
        // longer than the lease
        thread::sleep(Duration::from_millis(300));
        field.mounts[host].signal(Signal::CONT);
        match round % 3 {
            0 => field.take_lock_away(),
            1 => field.cut_connections(),
            _ => {}
        }
    });
}

/// As above, and surely between the last look at the lock and the publication: there one daemon's commits are held
/// up, and meanwhile lose their lock to others.
#[test]
fn with_publications_held_up_the_history_is_one_of_a_register() {
    if !is_root() {
        return;
    }
    let field = Field::new(&["--lock-wait", "20s"]);
    let mut clients = at_the_mounts();
    let modern = field.neighbour(Style::Modern, None);
    clients.push(Box::new(move |work| loader(work, modern, Did::Read)));
    // a publication that was held up is taken back at once
    let inject = "renameat2:delay_enter=400000:when=2+3";
    let _tracer = Tracer::inject(&field.mounts[0], inject);
    field.judge(clients, Glimpses::Allowed, |field, _| {
        field.await_commit(0, 0);
        thread::sleep(Duration::from_millis(100));
        field.take_lock_away();
        thread::sleep(Duration::from_millis(300));
    });
}

#[test]
fn with_killed_daemons_the_history_is_one_of_a_register() {
    let field = Field::new(&["--lease-ttl", "400ms", "--lock-wait", "20s"]);
    let mut clients = at_the_mounts();
    let [reading, writing] = [(); 2].map(|()| field.neighbour(Style::Modern, None));
    clients.push(Box::new(move |work| loader(work, reading, Did::Read)));
    clients.push(Box::new(move |work| updater(work, writing)));
    field.judge(clients, Glimpses::Forbidden, |field, round| {
        let host = round % 2;
        field.await_commit(host, round);
        field.mounts[host].crash();
        field.mounts[host] = field.mount(host);
        if round % 3 == 1 {
            field.cut_connections();
        }
    });
}

/// Here no lock is lost and every refresh of the cache is delivered, if late, so old code is as well off as the
/// others. It writes at a mount only: beside it, old code truncates in place, and its own kind sees that.
#[test]
fn with_neighbours_old_and_modern_the_history_is_one_of_a_register() {
    let field = Field::new(&["--lock-wait", "20s"]);
    let mut clients = at_the_mounts();
    for (style, host) in [
        (Style::Modern, Some(0)),
        (Style::Modern, None),
        (Style::Old, Some(1)),
    ] {
        let neighbour = field.neighbour(style, host);
        clients.push(Box::new(move |work| updater(work, neighbour)));
    }
    let modern = field.neighbour(Style::Modern, Some(1));
    clients.push(Box::new(move |work| loader(work, modern, Did::Read)));
    let old = field.neighbour(Style::Old, None);
    clients.push(Box::new(move |work| loader(work, old, Did::ReadCached)));
    field.judge(clients, Glimpses::Forbidden, |field, round| {
        let what = if round % 2 == 0 { "ALL" } else { "WRITE" };
        field.redis.cmd(&["CLIENT", "PAUSE", "120", what]);
        thread::sleep(Duration::from_millis(300));
    });
}
