//! `x.nodb.log` is a file that grows: for programs that follow, search, and stop in the middle.

use crate::eventually;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use super::common::run::{BOTH, Kind, Run};
use super::{await_followed, log, publish, save};

/// A program that is ended with the test, and its lines.
struct Follower(Child, Receiver<String>);

impl Follower {
    fn start(run: &Run, program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(args).current_dir(run.mount.path());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        let (tell, told) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Self(child, told)
    }

    /// The next line with these words.
    fn await_line(&self, words: &str) -> String {
        loop {
            let line = self.1.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("never: {words}"));
            if line.contains(words) {
                return line;
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn tail_follows_by_descriptor_and_by_name() {
    for kind in BOTH {
        let run = Run::new(kind);
        await_followed(&run, "wepp");
        for how in ["-f", "-F"] {
            let tail = Follower::start(&run, "tail", &[how, "-n", "1", "wepp.nodb.log"]);
            let first = tail.1.recv_timeout(Duration::from_secs(60)).unwrap();
            assert_eq!(Some(&*first), log(&run, "wepp").lines().last());
            save(&run, "wepp", 1);
            for words in ["lock taken", "committed", "lock released"] {
                tail.await_line(words);
            }
            if kind == Kind::Redis {
                publish(&run, "wepp", how);
                tail.await_line(&format!("text={how}"));
            }
        }
    }
}

#[test]
fn programs_that_search_find() {
    let run = Run::new(Kind::Embedded);
    for n in 0..20 {
        save(&run, "wepp", n);
    }
    for (script, expected) in [
        ("grep -c committed wepp.nodb.log", "20"),
        ("cat wepp.nodb.log | grep -c committed", "20"),
        ("tail -n 3 wepp.nodb.log | wc -l", "3"),
        ("head -c 100 wepp.nodb.log | wc -c", "100"),
        ("awk '/committed/' wepp.nodb.log | wc -l", "20"),
        (
            "cp wepp.nodb.log /tmp/nodbfs-copy.$$; grep -c committed /tmp/nodbfs-copy.$$; rm /tmp/nodbfs-copy.$$",
            "20",
        ),
        (
            "python3 -c 'import mmap; f = open(\"wepp.nodb.log\"); print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)[:].count(b\"committed\"))'",
            "20",
        ),
    ] {
        let found = run.shell(script, &[]);
        assert_eq!(
            String::from_utf8_lossy(&found.stdout).trim(),
            expected,
            "{script}"
        );
    }
    let meta = fs::metadata(run.at("wepp.nodb.log")).unwrap();
    assert_eq!(meta.len(), log(&run, "wepp").len() as u64);
    assert!(meta.is_file() && meta.nlink() == 1);
}

#[test]
fn what_was_forgotten_reads_as_text_and_never_as_half_a_line() {
    let run = Run::new(Kind::Embedded);
    let at = run.at("wepp.nodb.log");
    fs::read(run.at("wepp.nodb")).unwrap();
    let mut open = File::open(&at).unwrap();
    let mut begun = [0; 10];
    open.read_exact(&mut begun).unwrap();
    let first = log(&run, "wepp").lines().next().unwrap().to_owned();
    let many: String = (0..2000).map(|n| format!("{n:>80}\n")).collect();
    let mut writer = File::options().append(true).open(&at).unwrap();
    writer.write_all(many.as_bytes()).unwrap();
    let mut rest = String::new();
    open.read_to_string(&mut rest).unwrap();
    let whole = String::from_utf8(begun.to_vec()).unwrap() + &rest;
    assert_eq!(
        whole.lines().next(),
        Some(&*first),
        "the line that was begun"
    );
    let mut dots = 0;
    for line in whole.lines().skip(1) {
        let filler = line.bytes().all(|byte| byte == b'.');
        assert!(
            filler || line.starts_with("20") && line.contains("text= "),
            "{line}"
        );
        dots += usize::from(filler);
    }
    assert!(dots > 100, "{dots}");
    let size = open.seek(SeekFrom::End(0)).unwrap();
    assert_eq!(
        (size, open.metadata().unwrap().len()),
        (whole.len() as u64, size)
    );
    // whoever comes now begins with a whole line
    drop((open, writer));
    let mut fresh = String::new();
    eventually("the kernel has closed the old one", || {
        fresh = log(&run, "wepp");
        fresh.len() < 200_000
    });
    assert!(fresh.starts_with("20"), "{fresh:.80}");
    assert_eq!(fresh.lines().last(), whole.lines().last());
}
