//! What a daemon answers beside its mount: who may ask, how it is, and that it answers when the mount
//! is stuck.

#[path = "common/bindfs.rs"]
mod bindfs;
mod common;
#[path = "common/site.rs"]
mod site;
#[path = "common/tracer.rs"]
mod tracer;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use bindfs::Bindfs;
use common::command::nodbfs;
use common::mount::Mount;
use common::program::Program;
use common::redis::RedisServer;
use rustix::process::Signal;
use serde_json::{Value, json};
use site::{Site, document, eventually, listing, save, within};
use tracer::{Tracer, is_root};

fn words<'a>(args: &[&'a str], path: &'a Path) -> Vec<&'a str> {
    let mut words = args.to_vec();
    words.push(path.to_str().unwrap());
    words
}

/// What the daemon of the mount on which `path` lies says of itself.
fn status(path: &Path) -> Value {
    let ended = nodbfs(&words(&["status", "--json"], path));
    let mut all = ended.json();
    assert_eq!(ended.code, Some(0));
    assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
    all[0].take()
}

/// One operation, call or event of a status.
fn line<'a>(status: &'a Value, kind: &str, name: &str) -> &'a Value {
    let lines = status["status"][kind].as_array().unwrap();
    let line = lines.iter().find(|line| line["name"] == name);
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// The name of the mount's control socket.
fn name(at: &Path) -> String {
    let dev = fs::metadata(at).unwrap().dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    format!("nodbfs-control-{major}:{minor}")
}

/// A conversation with the daemon of the process `pid`. The mount before had the same device number, perhaps, and its
/// daemon the name for a little longer.
fn connect(name: &str, pid: u32) -> UnixStream {
    let mut own = None;
    eventually("its daemon has the name", || {
        let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap());
        let is_own = |stream: &UnixStream| {
            let peer = rustix::net::sockopt::socket_peercred(stream).unwrap();
            peer.pid.as_raw_nonzero().get() as u32 == pid
        };
        own = stream.ok().filter(is_own);
        own.is_some()
    });
    own.unwrap()
}

#[test]
fn a_mount_says_how_it_is_and_what_it_did() {
    let site = Site::new(&[]);
    let at = site.at("wepp.nodb");
    assert_eq!(save(&at, &document("wepp", 1)), Ok(()));
    fs::read(&at).unwrap();
    // a process of its own: one that starts others closes descriptors in them, which would be refused too
    let refused = json!({"op": "put", "name": "wepp.nodb", "text": "{"});
    let refused = Program::spawn(site.mount.path()).call(refused);
    assert_eq!(refused, Err("EBADMSG".to_owned()));
    let mut writer = OpenOptions::new()
        .append(true)
        .open(site.at("soils.nodb"))
        .unwrap();

    // the ends of the others are not waited for
    let mut said = Value::Null;
    eventually("only this writer is left", || {
        said = status(&at);
        let all = &said["status"]["controllers"];
        let left = |what: &str| all[what].as_array().unwrap().len();
        (left("writers"), left("locks")) == (1, 1)
    });
    assert_eq!(said["mountpoint"], site.mount.path().to_str().unwrap());
    let inside = &said["status"];
    assert_eq!(inside["pid"], site.mount.pid());
    assert_eq!(
        inside["source"],
        site.on_disk("").to_str().unwrap().trim_end_matches('/')
    );
    assert_eq!(inside["store"]["name"], site.redis.url());
    assert_eq!(inside["store"]["error"], Value::Null);
    let controllers = &inside["controllers"];
    assert_eq!(controllers["writers"][0]["path"], "soils.nodb");
    assert_eq!(controllers["writers"][0]["pid"], std::process::id());
    assert_eq!(controllers["locks"][0]["lock"], "nodb-lock:run:soils.nodb");
    assert_eq!(controllers["debts"], 0);
    assert_eq!(
        (&inside["events"]["commit"], &inside["events"]["refusal"]),
        (&1.into(), &1.into())
    );
    assert!(inside["process"]["memory"].as_u64().unwrap() > 1 << 20);
    let written = line(&said, "operations", "write");
    assert_eq!(written["count"], 2);
    let times = ["p50", "p99", "mean"].map(|time| written[time].as_f64().unwrap());
    assert!(
        times.iter().all(|time| *time > 0.0) && times[0] <= times[1],
        "{written}"
    );
    assert!(line(&said, "store_calls", "acquire lock")["count"].as_u64() >= Some(3));

    // the tables say the same
    let all = nodbfs(&words(&["status"], &at)).ok();
    for words in [
        "serving",
        "nodb-lock:run:soils.nodb",
        "OPERATION",
        "STORE CALL",
    ] {
        assert!(all.contains(words), "{all}");
    }
    let table = nodbfs(&["status"]).ok();
    let own = table
        .lines()
        .find(|line| line.starts_with(site.mount.path().to_str().unwrap()));
    assert!(own.is_some_and(|line| line.contains("serving")), "{table}");
    writer.write_all(b" ").unwrap();
}

/// A directory of 1,000 files that did not change just now.
fn directory_of_many(site: &Site) -> PathBuf {
    let many = site.at("many");
    fs::create_dir(&many).unwrap();
    for name in 0..1000 {
        fs::write(many.join(name.to_string()), "97.5\n").unwrap();
    }
    thread::sleep(Duration::from_millis(100));
    many
}

/// The attributes of all files in a directory.
fn walk(dir: &Path) {
    for file in fs::read_dir(dir).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().len(), 5);
    }
}

/// How often `operations` are asked for while somebody walks through a directory.
fn requests_of_a_walk(dir: &Path, operations: &[&str]) -> u64 {
    let count = || -> u64 {
        let status = status(dir);
        let all = status["status"]["operations"].as_array().unwrap();
        let asked = |line: &&Value| operations.iter().any(|name| line["name"] == *name);
        let counts = all.iter().filter(asked).map(|line| line["count"].as_u64());
        counts.map(Option::unwrap).sum()
    };
    let before = count();
    walk(dir);
    count() - before
}

/// What the kernel remembers of names and attributes ends with `--plain-ttl`: then a walk asks for a new listing, which
/// comes with them, and not for each name.
#[test]
fn a_walk_after_a_while_asks_by_the_directory_and_not_by_the_name() {
    let site = Site::new(&["--plain-ttl", "1s"]);
    let many = directory_of_many(&site);
    walk(&many);
    let by_the_directory = || {
        thread::sleep(Duration::from_millis(1100));
        requests_of_a_walk(&many, &["lookup"]) < 500
    };
    // one that takes longer than a second must ask by the name after all
    assert!((0..5).any(|_| by_the_directory()));
}

/// What the kernel has of a listing that nobody read to its end is of use to the next reader, and to all after that.
#[test]
fn a_listing_that_was_broken_off_is_completed_and_kept() {
    let site = Site::new(&["--plain-ttl", "1s"]);
    let many = directory_of_many(&site);
    assert_eq!(fs::read_dir(&many).unwrap().take(3).count(), 3);
    thread::sleep(Duration::from_millis(1100));
    walk(&many);
    let is_kept = || {
        walk(&many);
        requests_of_a_walk(&many, &["readdir", "readdirplus"]) == 0
    };
    // two that take longer than a second ask again
    assert!((0..5).any(|_| is_kept()));
}

#[test]
fn a_store_that_is_away_and_debts_show() {
    let mut site = Site::new(&["--lock-wait", "100ms"]);
    site.redis.kill();
    let said = status(site.mount.path());
    let error = said["status"]["store"]["error"].as_str().unwrap();
    assert!(error.contains("refused"), "{said}");
    // an entry of a controller that moves away must go as soon as the store is back
    fs::create_dir(site.on_disk("dir")).unwrap();
    fs::write(site.on_disk("dir/x.nodb"), "{}").unwrap();
    fs::rename(site.at("dir"), site.at("moved")).unwrap();
    let debts = |said: Value| said["status"]["controllers"]["debts"].as_u64().unwrap();
    eventually("a debt shows", || debts(status(site.mount.path())) == 1);
    site.redis.restart();
    eventually("it is paid", || {
        let said = status(site.mount.path());
        said["status"]["events"]["debt paid"] == 1 && debts(said) == 0
    });
}

/// Everything on the mount hangs, looks at it too; its daemon still says how it is.
#[test]
fn a_stuck_mount_answers() {
    if !is_root() {
        return;
    }
    let redis = RedisServer::start();
    let source = Bindfs::new();
    fs::write(source.path().join("wepp.nodb"), document("wepp", 0)).unwrap();
    let mount = Mount::builder(source.path()).redis(&redis.url()).start();
    let at = mount.path().join("wepp.nodb");
    assert_eq!(save(&at, &document("wepp", 1)), Ok(()));
    let stopped = source.stop();
    let stuck: Vec<_> = (0..6)
        .map(|n| {
            let (at, dir) = (at.clone(), mount.path().to_owned());
            thread::spawn(move || match n {
                0 => drop(save(&at, &document("wepp", 2))),
                1 => drop(fs::read(at)),
                _ => drop(fs::read_dir(dir.join("sub"))),
            })
        })
        .collect();
    eventually("a look hangs", || {
        let dir = mount.path().to_owned();
        let (tell, told) = std::sync::mpsc::channel();
        thread::spawn(move || tell.send(fs::metadata(dir.join("nothing")).is_ok()));
        told.recv_timeout(std::time::Duration::from_millis(200))
            .is_err()
    });

    let said = status(&at);
    assert_eq!(said["status"]["pid"], mount.pid());
    assert_eq!(said["status"]["events"]["commit"], 1);
    assert!(nodbfs(&words(&["status"], &mount.path().join("no/such/file"))).code == Some(0));
    drop(stopped);
    for stuck in stuck {
        stuck.join().unwrap();
    }
}

#[test]
fn nobody_answers_for_what_is_not_mounted_or_has_crashed() {
    let site = Site::new(&[]);
    let refused = nodbfs(&words(&["status"], &site.on_disk("wepp.nodb"))).failed(1);
    assert!(refused.contains("lies on no mount"), "{refused}");
    let mut site = site;
    site.mount.crash();
    let said = status(site.mount.path());
    assert_eq!(said["status"], Value::Null);
    assert!(
        said["error"].as_str().unwrap().starts_with("no answer"),
        "{said}"
    );
}

/// Kills what it started when it is dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn whoever_answers_in_a_dead_daemons_place_is_not_believed() {
    if !is_root() {
        return;
    }
    let mut site = Site::new(&[]);
    let name = name(site.mount.path());
    site.mount.crash();
    let listen = format!(
        "import socket\n\
         s = socket.socket(socket.AF_UNIX)\n\
         s.bind('\\0{name}')\n\
         s.listen()\n\
         print('listening', flush=True)\n\
         while True: s.accept()"
    );
    let mut somebody = Command::new("setpriv");
    somebody.env("PATH", "/usr/bin:/bin");
    somebody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    somebody
        .args(["python3", "-c", &listen])
        .stdout(Stdio::piped());
    let mut somebody = Started(somebody.spawn().unwrap());
    let mut said = String::new();
    let stdout = somebody.0.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut said).unwrap();
    assert_eq!(said, "listening\n");
    let said = status(site.mount.path());
    let error = said["error"].as_str().unwrap();
    assert!(
        error.contains("user 65534, who has not mounted it"),
        "{said}"
    );
}

#[test]
fn only_the_daemons_user_and_root_may_ask() {
    if !is_root() {
        return;
    }
    let site = Site::new(&["--allow-other"]);
    assert_eq!(status(site.mount.path())["status"]["pid"], site.mount.pid());
    let ask = format!(
        "import socket\n\
         s = socket.socket(socket.AF_UNIX)\n\
         s.connect('\\0{}')\n\
         try: s.sendall(b'{{\"version\":1,\"say\":\"status\"}}\\n')\n\
         except BrokenPipeError: pass\n\
         print(s.makefile().readline())",
        name(site.mount.path())
    );
    let asked_as = |uid: &str| {
        let mut command = Command::new("setpriv");
        // that of others, not of root
        command.env("PATH", "/usr/bin:/bin");
        command.args(["--reuid", uid, "--regid", uid, "--clear-groups"]);
        let output = command.args(["python3", "-c", &ask]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = asked_as("65534");
    assert!(
        said.contains("only the user who mounted it and root"),
        "{said}"
    );
    assert!(asked_as("0").contains("\"status\":{"));
}

#[test]
fn what_is_no_question_is_answered_and_harms_nobody() {
    let site = Site::new(&[]);
    let name = name(site.mount.path());
    let answer = |sent: &[u8]| {
        let mut stream = connect(&name, site.mount.pid());
        stream.write_all(sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    };
    for sent in [
        &b"garbage\n"[..],
        b"\xff\xfe\n",
        b"{}\n",
        b"{\"version\":1,\"say\":\"no such thing\"}\n",
        b"{\"version\":99,\"say\":\"status\"}\n",
        b"{\"version\":1,\"bytes\":1e30,\"say\":\"status\"}\n",
        b"{\"version\":1,\"bytes\":99999999999,\"say\":\"status\"}\n",
        b"{\"version\":1,\"bytes\":10,\"say\":\"status\"}\nshort",
        b"no end of a line",
    ] {
        let said = answer(sent);
        assert!(
            said.contains("not understood"),
            "{:?}: {said}",
            String::from_utf8_lossy(sent)
        );
    }
    assert_eq!(answer(b""), "");
    assert!(answer(b"{\"version\":1,\"say\":\"commit\"}\n").contains("nothing is locked"));
    for path in [
        "../../etc/x.nodb",
        "/etc/x.nodb",
        "no/x.nodb",
        "wepp.nodb/x.nodb",
    ] {
        let asked = format!("{{\"version\":1,\"say\":{{\"edit\":{{\"path\":{path:?}}}}}}}\n");
        let said = answer(asked.as_bytes());
        assert!(said.contains("failed"), "{path}: {said}");
    }
    assert_eq!(status(site.mount.path())["status"]["pid"], site.mount.pid());
}

#[test]
fn too_many_conversations_are_refused_until_one_ends() {
    let site = Site::new(&[]);
    let name = name(site.mount.path());
    let pid = site.mount.pid();
    let mut open: Vec<_> = (0..64).map(|_| connect(&name, pid)).collect();
    let one_more = within("an answer", move || {
        let mut said = String::new();
        BufReader::new(connect(&name, pid))
            .read_line(&mut said)
            .unwrap();
        said
    });
    assert!(one_more.contains("64 conversations"), "{one_more}");
    open.truncate(60);
    eventually("there is room again", || {
        nodbfs(&words(&["status"], site.mount.path()))
            .out
            .contains("serving")
    });
}

/// Runs `mount` with these options for a mount that is there.
fn remount(at: &Path, options: &str) {
    let mut mount = Command::new("mount");
    // the helper of the file system would mount it anew
    let done = mount.args(["-i", "-o", options]).arg(at).status().unwrap();
    assert!(done.success(), "mount -o {options}");
}

#[test]
fn a_mount_that_was_remounted_read_only_is_read_only_for_whoever_asks_its_daemon() {
    if !is_root() {
        return;
    }
    let site = Site::new(&[]);
    let at = site.at("wepp.nodb");
    let file = at.to_str().unwrap();
    let state = site.mount.state_dir().to_str().unwrap();
    let edit = ["edit", file, "--state-dir", state];
    let set = [&edit[..], &["--set", "_n=1"]].concat();
    for options in ["remount,ro", "remount,bind,ro"] {
        let before = site.text("wepp.nodb");
        remount(site.mount.path(), options);
        assert_eq!(
            fs::write(site.at("new"), "").unwrap_err().raw_os_error(),
            Some(libc::EROFS)
        );
        assert_eq!(status(&at)["status"]["read_only"], true);
        for words in [
            &set[..],
            &["lock", file, "--", "true"],
            &["unlock", file],
            &["unlock", file, "--force", "--reason", "none"],
            &["publish", file, "text"],
        ] {
            let refused = nodbfs(words).failed(1);
            assert!(refused.contains("the mount is read-only"), "{refused}");
        }
        assert!(!site.on_disk("wepp.log").exists());
        assert_eq!(site.text("wepp.nodb"), before);
        remount(site.mount.path(), &options.replace("ro", "rw"));
        nodbfs(&set).ok();
        assert_eq!(site.text("wepp.nodb"), document("wepp.nodb", 1));
        // while it is edited
        let script = format!(
            "mount -i -o {options} {}; sed s/1/2/",
            site.mount.path().display()
        );
        let refused = nodbfs(&[&edit[..], &["--", "sh", "-ec", &script]].concat()).failed(1);
        assert!(refused.contains("the mount is read-only"), "{refused}");
        assert_eq!(
            fs::read_to_string(site.rejected().pop().unwrap()).unwrap(),
            document("wepp.nodb", 2)
        );
        assert_eq!(site.lock("wepp.nodb"), None);
        remount(site.mount.path(), &options.replace("ro", "rw"));
        fs::write(site.on_disk("wepp.nodb"), document("wepp.nodb", 0)).unwrap();
    }
}

/// The daemon is told to end while a commit of an edit is at its exchange.
#[test]
fn a_commit_that_is_under_way_when_the_mount_ends_is_done_and_answered() {
    if !is_root() {
        return;
    }
    for signal in [None, Some(Signal::TERM)] {
        let mut site = Site::new(&[]);
        let at = site.at("wepp.nodb");
        fs::read(&at).unwrap();
        let tracer = Tracer::inject(&site.mount, "renameat2:delay_enter=3000000:when=1");
        let asked = at.clone();
        let editing =
            thread::spawn(move || nodbfs(&["edit", asked.to_str().unwrap(), "--set", "_n=1"]));
        tracer.await_call(libc::SYS_renameat2);
        match signal {
            Some(signal) => site.mount.signal(signal),
            None => drop(nodbfs(&words(&["umount"], site.mount.path())).ok()),
        }
        editing.join().unwrap().ok();
        assert!(site.mount.wait().is_some_and(|status| status.success()));
        drop(tracer);
        assert_eq!(site.text("wepp.nodb"), document("wepp.nodb", 1));
        let entry = site.entry("wepp.nodb");
        assert!(entry.is_none_or(|entry| entry.contains("\"_n\": 1")));
        assert_eq!(site.lock("wepp.nodb"), None);
        let left = listing(&site.on_disk(""));
        assert_eq!(left, ["held.nodb", "soils.nodb", "wepp.nodb"]);
    }
}

/// As a pager does that is looked at.
#[test]
fn whoever_asks_and_does_not_read_keeps_no_mount_from_ending() {
    let mut site = Site::new(&[]);
    let mut stream = connect(&name(site.mount.path()), site.mount.pid());
    stream
        .write_all(b"{\"version\":1,\"say\":{\"log\":{\"path\":\"\",\"follow\":true}}}\n")
        .unwrap();
    let line = "x".repeat(60_000);
    let at = site.at("wepp.nodb");
    let publish = || nodbfs(&["publish", at.to_str().unwrap(), &line]).ok();
    eventually("it is told of a line", || {
        publish();
        rustix::io::ioctl_fionread(&stream).unwrap() > 50_000
    });
    // more than what a socket takes
    for _ in 0..8 {
        publish();
    }
    assert!(site.mount.stop().success());
    let log = site.mount.log();
    assert!(!log.contains("conversations are still under way"), "{log}");
}
