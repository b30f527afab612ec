//! What must hold when nobody is at work.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::ground::{CLERK, Ground, OTHERS, STRANGER};
use crate::host::Host;
use crate::ledger::{Book, Company, Marks, Outcome, state_of_mut};
use crate::program::{Road, Task, perform, run_of};

/// Longer than any lease and any limit; only a failure waits for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nobody may be busy with one thing for so long.
const STUCK: Duration = Duration::from_secs(90);
const ACTOR: &str = "at rest";

/// Waits until everybody rests, and looks. All daemons and Redis run.
pub fn settle(ground: &Ground) -> Result<()> {
    ground.report.event("everybody rests");
    let Some(_rest) = ground.gate.try_write_for(STUCK) else {
        for words in ground.report.stuck(STUCK / 2) {
            ground
                .report
                .violation(ACTOR, format!("does not return: {words}"));
        }
        return Ok(());
    };
    eventually(ground, "the locks of the dead are released", || {
        ground.release_leaked();
        ground.leaked.lock().is_empty()
    });
    let stranger = ground.book(Company::Stranger).lock_key();
    let foreign = || -> Result<Vec<String>> {
        let locks = ground.locks()?;
        Ok(locks.into_iter().filter(|key| *key != stranger).collect())
    };
    let gone = || foreign().is_ok_and(|locks| locks.is_empty());
    if !eventually(ground, "all locks are gone", gone) {
        for key in foreign()? {
            let value: Option<String> = ground.ask(0, &["GET", &key])?;
            ground
                .report
                .violation(ACTOR, format!("{key} is {value:?}"));
            // said once, and not in everybody's way for hours
            ground.ask::<()>(0, &["DEL", &key])?;
        }
    }
    for host in &ground.hosts {
        let paid = format!("the debts of {} are paid", host.name);
        eventually(ground, &paid, || host.debts() == 0);
    }
    for book in &ground.books {
        the_mounts_show_the_disk(ground, book)?;
        the_entry_is_right(ground, book, false)?;
    }
    no_leftovers(ground);
    let held: Option<String> = ground.ask(0, &["GET", &stranger])?;
    if held.as_deref() != Some(STRANGER) {
        let words = format!("the stranger's lock is {held:?}");
        ground.report.violation(ACTOR, words);
    }
    for book in &ground.books {
        if book.company != Company::Stranger {
            for host in &ground.hosts {
                the_clerk_writes(ground, book, host);
            }
            the_mounts_show_the_disk(ground, book)?;
            the_entry_is_right(ground, book, true)?;
            the_lock_is_free(ground, book)?;
        }
    }
    Ok(())
}

/// Promises 1, 2, 6 and 7.
fn the_mounts_show_the_disk(ground: &Ground, book: &Book) -> Result<()> {
    let path = ground.source.join(&book.path);
    let disk = fs::read(&path)?;
    ground.observe(ACTOR, book, &book.floor(), &disk, &|| fs::read(&path));
    for host in &ground.hosts {
        let shown = fs::read(host.mount.join(&book.path));
        if shown.as_ref().ok() != Some(&disk) {
            let by = |text: &[u8]| Marks::of(text).and_then(|marks| marks.by);
            let shown = shown.map(|text| by(&text));
            let words = format!("{} shows {shown:?}, on disk is {:?}", host.name, by(&disk));
            ground
                .report
                .violation(ACTOR, format!("{}: {words}", book.name));
        }
    }
    Ok(())
}

/// An old neighbour believes any entry, so there may be none that is not the file's. After a commit there is one.
fn the_entry_is_right(ground: &Ground, book: &Book, committed: bool) -> Result<()> {
    let path = ground.source.join(&book.path);
    let entry: Option<String> = ground.ask(13, &["GET", &book.key])?;
    let complain = |words: String| {
        ground
            .report
            .violation(ACTOR, format!("{}: {words}", book.name));
    };
    let Some(entry) = entry else {
        if committed {
            complain("a commit left no entry".to_owned());
        }
        return Ok(());
    };
    let text = fs::read(&path)?;
    let (mut entry_document, mut document): (Value, Value) =
        match (serde_json::from_str(&entry), serde_json::from_slice(&text)) {
            (Ok(entry), Ok(document)) => (entry, document),
            _ => {
                complain("entry or file is no document".to_owned());
                return Ok(());
            }
        };
    let stat = fs::metadata(&path)?;
    let said = take_signature(&mut entry_document);
    take_signature(&mut document);
    let mtime = stat.mtime() as f64 + 1e-9 * stat.mtime_nsec() as f64;
    // documents of the oldest kind, written by an old neighbour, say nothing
    let signed = said.is_none_or(|(time, size)| (time - mtime).abs() <= 1e-6 && size == stat.len());
    if entry_document == document && signed {
        return Ok(());
    }
    let by = Marks::of(&text).and_then(|marks| marks.by);
    if !committed && by.as_ref().is_some_and(|by| book.is_loose(by)) {
        ground.report.account(
            "the entry is an older generation's, after a death between publication and refresh",
        );
        return Ok(());
    }
    let entry = Marks::of(entry.as_bytes()).and_then(|marks| marks.by);
    complain(format!(
        "the entry is by {entry:?} of {said:?}, the file by {by:?} of {mtime} and {} bytes",
        stat.len()
    ));
    Ok(())
}

fn take_signature(document: &mut Value) -> Option<(f64, u64)> {
    let state = state_of_mut(document).as_object_mut()?;
    let (time, size) = (state.remove("_nodb_mtime")?, state.remove("_nodb_size")?);
    Some((time.as_f64()?, size.as_u64()?))
}

/// Promise 4 and 10: nothing is left of ours after somebody has looked, and of others everything.
fn no_leftovers(ground: &Ground) {
    let mut runs: Vec<&Path> = ground.books.iter().map(|book| run_of(&book.path)).collect();
    runs.dedup();
    for run in runs {
        let ours = |name: &String| name.starts_with(".nodbfs") && !OTHERS.contains(&name.as_str());
        eventually(ground, "the leftovers go", || {
            let shown = listing(&ground.hosts[0].mount.join(run));
            shown.is_some_and(|_| {
                listing(&ground.source.join(run)).is_some_and(|left| !left.iter().any(ours))
            })
        });
        let disk = listing(&ground.source.join(run));
        for host in &ground.hosts {
            let shown = listing(&host.mount.join(run));
            let all = disk.clone().map(|mut disk| {
                disk.retain(|name| !name.starts_with(".nodbfs"));
                disk
            });
            if shown != all {
                let words = format!("{} lists {shown:?}, on disk is {all:?}", host.name);
                ground.report.violation(ACTOR, words);
            }
        }
        for other in OTHERS {
            if !disk.iter().flatten().any(|name| name == other) {
                let words = format!("{other}, which is not ours, is gone");
                ground.report.violation(ACTOR, words);
            }
        }
    }
}

fn listing(dir: &Path) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).ok()? {
        names.push(entry.ok()?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Some(names)
}

/// Everything works again: a commit at each mount.
fn the_clerk_writes(ground: &Ground, book: &Book, host: &Host) {
    let what = format!("{} can be saved at {}", book.name, host.name);
    let mut errno = 0;
    let saved = eventually(ground, &what, || {
        let task = Task {
            path: host.mount.join(&book.path),
            road: Road::Sync,
            writer: CLERK.to_owned(),
            number: book.begin(CLERK),
            pause: Duration::ZERO,
        };
        errno = perform(&task).errno;
        let outcome = match errno {
            0 => Outcome::Acknowledged,
            _ => Outcome::Refused,
        };
        book.end(CLERK, task.number, outcome, false);
        errno == 0
    });
    if saved {
        ground.report.commit();
    } else {
        let error = std::io::Error::from_raw_os_error(errno);
        eprintln!("          the last try: {error}");
    }
}

/// Promise 5, and the mirror that preflight reads.
fn the_lock_is_free(ground: &Ground, book: &Book) -> Result<()> {
    let lock: Option<String> = ground.ask(0, &["GET", &book.lock_key()])?;
    let flag = format!("locked:{}", book.name);
    let flag: Option<String> = ground.ask(0, &["HGET", &book.runid, &flag])?;
    if lock.is_some() || flag.as_deref() == Some("true") {
        let words = format!(
            "{}: after a commit the lock is {lock:?}, its mirror {flag:?}",
            book.name
        );
        ground.report.violation(ACTOR, words);
    }
    Ok(())
}

/// Whether it comes true; a violation if it does not.
fn eventually(ground: &Ground, what: &str, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > PATIENCE {
            ground.report.violation(ACTOR, format!("never: {what}"));
            return false;
        }
        sleep(Duration::from_millis(20));
    }
    true
}
