//! Readers of controllers, and workers on plain files.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::Duration;

use crate::ground::Ground;
use crate::host::Host;
use crate::ledger::{Book, Company};
use crate::program::{is_gone, run_of};
use crate::sample::Rng;

/// How many descriptors a reader keeps.
const KEPT: usize = 8;

/// A descriptor that is kept open, and what it showed.
struct Kept<'a> {
    book: &'a Book,
    file: File,
    text: Vec<u8>,
    epoch: u64,
}

/// Reads controllers at a mount, or without one beside the mounts, and keeps descriptors open.
pub fn read(ground: &Ground, host: Option<&Host>, actor: &str, rng: Rng) {
    let top = host.map_or(&ground.source, |host| &host.mount);
    let epoch = || host.map_or(0, Host::epoch);
    let unharmed = |before| host.is_none_or(|host| host.is_unharmed_since(before));
    // an old neighbour writes in place, which is seen beside the mounts
    let books: Vec<_> = ground
        .books
        .iter()
        .filter(|book| host.is_some() || book.company != Company::Old)
        .collect();
    let mut kept: VecDeque<Kept> = VecDeque::new();
    let complain = |book: &Book, before, error: io::Error| {
        if !is_gone(error.raw_os_error().unwrap_or(0)) || unharmed(before) {
            ground
                .report
                .violation(actor, format!("{}: a reader got: {error}", book.name));
        }
    };
    ground.work(actor, 25, rng, |rng| {
        let book = books[rng.int(0, books.len() as i64) as usize];
        let path = top.join(&book.path);
        let (before, floor) = (epoch(), book.floor());
        let wait = Duration::from_millis(rng.int(-30, 20).max(0) as u64);
        ground.report.reads.fetch_add(1, SeqCst);
        match slowly(&path, wait) {
            Ok((file, text)) => {
                let again = || fs::read(&path);
                ground.observe(actor, book, &floor, &text, &again);
                kept.push_back(Kept {
                    book,
                    file,
                    text,
                    epoch: before,
                });
            }
            Err(error) => complain(book, before, error),
        }
        let one = rng.int(0, kept.len().max(1) as i64) as usize;
        let Some(Kept {
            book,
            file,
            text,
            epoch,
        }) = kept.get(one)
        else {
            return;
        };
        let mut now = vec![0; text.len() + 1];
        match file.read_at(&mut now, 0) {
            Ok(size) if now[..size] == text[..] => {}
            Ok(_) => ground.report.violation(
                actor,
                format!("{}: an open descriptor shows something else", book.name),
            ),
            Err(error) => {
                complain(book, *epoch, error);
                kept.clear();
            }
        }
        if kept.len() > KEPT {
            kept.pop_front();
        }
    });
}

/// Reads a file with a pause in the middle.
fn slowly(path: &std::path::Path, pause: Duration) -> io::Result<(File, Vec<u8>)> {
    let mut file = File::open(path)?;
    let mut text = vec![0; 256];
    let size = file.read(&mut text)?;
    text.truncate(size);
    sleep(pause);
    file.read_to_end(&mut text)?;
    Ok((file, text))
}

/// Works on files that are no controllers, which notices nothing but that its mount is down.
pub fn plain(ground: &Ground, host: &Host, number: usize, actor: &str, rng: Rng) {
    // a directory of its own: the kernel holds that of a controller while a rename onto it waits for Redis
    let dir = run_of(&ground.book(Company::Relay).path).join(actor);
    let (at, beside) = (host.mount.join(&dir), ground.source.join(&dir));
    fs::create_dir(&beside).expect("a new directory in the source");
    let mut lines = 0;
    ground.work(actor, 30, rng, |rng| {
        let epoch = host.epoch();
        let text = rng.next().to_string().repeat(rng.int(1, 400) as usize);
        let mut round = || -> io::Result<()> {
            fs::write(at.join("draft"), &text)?;
            fs::rename(at.join("draft"), at.join("text"))?;
            same(&fs::read_to_string(at.join("text"))?, &text)?;
            same(&fs::read_to_string(beside.join("text"))?, &text)?;
            let mut log = File::options()
                .create(true)
                .append(true)
                .open(at.join("log"))?;
            log.write_all(b"line\n")?;
            lines += 1;
            fs::create_dir(at.join("dir"))?;
            fs::hard_link(at.join("text"), at.join("dir/link"))?;
            same(&fs::read_to_string(at.join("dir/link"))?, &text)?;
            fs::remove_dir_all(at.join("dir"))?;
            let length = fs::metadata(beside.join("log"))?.len();
            // a line may have been written by a mount that died before it said so
            if length < lines * 5 {
                return Err(io::Error::other(format!("{length} bytes of {lines} lines")));
            }
            lines = length / 5;
            Ok(())
        };
        match round() {
            Ok(()) => drop(ground.plain_done[number].fetch_add(1, SeqCst)),
            Err(_) if !host.is_unharmed_since(epoch) => {
                let _ = fs::remove_dir_all(beside.join("dir"));
            }
            Err(error) => ground.report.violation(actor, error),
        }
    });
}

fn same(seen: &str, written: &str) -> io::Result<()> {
    if seen == written {
        return Ok(());
    }
    let lengths = format!("{} bytes for {}", seen.len(), written.len());
    Err(io::Error::other(format!("not what was written: {lengths}")))
}
