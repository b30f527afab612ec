//! Small files are read through pages that the kernel keeps: whatever is done to the file, beside the mount or on it, whoever
//! opens it afterwards reads what is there, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};

use crate::common::twins::Twins;
use crate::eventually;

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// The file of a test, through the mount and beside it.
fn file_of(twins: &Twins) -> (PathBuf, PathBuf) {
    (
        twins.mounted().join("p1.sol"),
        twins.source().join("p1.sol"),
    )
}

/// All of an open file, from its start.
fn read_open(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// The kernel has its attributes and its pages, for a while, and they are right.
fn warm(mounted: &Path, beneath: &Path) {
    let text = read(beneath);
    for _ in 0..3 {
        fs::metadata(mounted).unwrap();
        assert!(read(mounted) == text);
    }
}

#[test]
fn what_was_rewritten_beneath_is_read_whole_at_once() {
    let twins = Twins::new([]);
    let (mounted, beneath) = file_of(&twins);
    fs::write(&beneath, "0").unwrap();
    for round in 1..100_usize {
        warm(&mounted, &beneath);
        // longer, shorter, as long
        let text = format!("{round:0$}", 1 + round * 37 % 5000);
        fs::write(&beneath, &text).unwrap();
        assert!(read(&mounted) == text, "round {round}");
    }
}

#[test]
fn a_time_set_back_hides_no_change() {
    let twins = Twins::new([]);
    let (mounted, beneath) = file_of(&twins);
    let old = Timespec {
        tv_sec: 1_000_000,
        tv_nsec: 0,
    };
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    for round in 100..103 {
        fs::write(&beneath, round.to_string()).unwrap();
        let times = Timestamps {
            last_access: omit,
            last_modification: old,
        };
        utimensat(CWD, &beneath, &times, AtFlags::empty()).unwrap();
        // size and mtime are as they were, and the kernel knows the rest
        eventually("the attributes", || {
            let ctime = |path| fs::metadata(path).map(|meta| (meta.ctime(), meta.ctime_nsec()));
            ctime(&mounted).unwrap() == ctime(&beneath).unwrap()
        });
        assert_eq!(read(&mounted), round.to_string());
        warm(&mounted, &beneath);
    }
}

#[test]
fn an_open_reader_keeps_nobody_from_what_is_there_now() {
    let twins = Twins::new([]);
    let (mounted, beneath) = file_of(&twins);
    fs::write(&beneath, "first").unwrap();
    warm(&mounted, &beneath);
    let mut reader = File::open(&mounted).unwrap();
    for round in 0..50_usize {
        let text = "x".repeat(round * 97 % 3000);
        fs::write(&beneath, &text).unwrap();
        assert!(read(&mounted) == text, "round {round}");
    }
    eventually("it sees so itself", || {
        read_open(&mut reader) == read(&beneath)
    });
}

#[test]
fn readers_and_writers_on_the_mount_see_the_same() {
    let twins = Twins::new([]);
    let (mounted, beneath) = file_of(&twins);
    fs::write(&beneath, "first").unwrap();
    warm(&mounted, &beneath);
    let mut reader = File::open(&mounted).unwrap();
    let mut writer = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&mounted)
        .unwrap();
    let mut log = OpenOptions::new().append(true).open(&mounted).unwrap();
    for round in 0..100_usize {
        writer.set_len(0).unwrap();
        writer.write_all_at(&vec![b'a'; round * 7], 0).unwrap();
        log.write_all(b"end").unwrap();
        let want = "a".repeat(round * 7) + "end";
        assert!(read_open(&mut reader) == want, "round {round}");
        assert!(read_open(&mut writer) == want, "round {round}");
        assert!(read(&mounted) == want && read(&beneath) == want);
    }
    drop((reader, writer, log));
    fs::write(&beneath, "last").unwrap();
    assert_eq!(read(&mounted), "last");
}

/// A writer that came while a reader kept the kernel's pages in use sees what others write beneath.
#[test]
fn a_writer_beside_a_reader_sees_what_is_written_beneath() {
    let twins = Twins::new([]);
    let (mounted, beneath) = file_of(&twins);
    fs::write(&beneath, "first").unwrap();
    warm(&mounted, &beneath);
    let reader = File::open(&mounted).unwrap();
    let mut writer = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&mounted)
        .unwrap();
    // what the kernel believed before is for a second
    eventually("it asks every time", || {
        fs::write(&beneath, "other").unwrap();
        read_open(&mut writer) == "other"
    });
    for round in 0..50_usize {
        let text = format!("{round:0$}", 1 + round * 37 % 500);
        fs::write(&beneath, &text).unwrap();
        assert_eq!(read_open(&mut writer), text);
    }
    drop(reader);
}

#[test]
fn maps_of_files_that_are_read_elsewhere_work() {
    let twins = Twins::new([]);
    fs::write(twins.source().join("p1.sol"), vec![b'a'; 10_000]).unwrap();
    let code = r#"
import mmap, os, sys
path, beneath = sys.argv[1:]
for _ in range(3): os.stat(path); open(path).read()
reader = open(path, "rb")
shown = mmap.mmap(reader.fileno(), 0, access=mmap.ACCESS_READ)
writer = open(path, "r+b")
written = mmap.mmap(writer.fileno(), 0)
written[5000:5003] = b"new"
assert shown[5000:5003] == b"new"
written.flush()
assert open(beneath, "rb").read()[5000:5003] == b"new"
written.close(); writer.close(); shown.close(); reader.close()
assert open(path, "rb").read()[5000:5003] == b"new"
"#;
    let done = Command::new("python3")
        .args(["-c", code])
        .args([twins.mounted(), &twins.source()].map(|dir| dir.join("p1.sol")))
        .status()
        .unwrap();
    assert!(done.success());
}
