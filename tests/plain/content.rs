//! What is in files: reading, writing, holes, appends, maps.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom, copy_file_range, fallocate, open, seek};
use rustix::io::Errno;

use crate::common::twins::Twins;

fn read_write(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .expect("a new file")
}

/// Bytes in which every place differs from its neighbours.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(step).take(length).collect()
}

#[test]
fn large_content_survives() {
    let twins = Twins::new([]);
    let data = noise(9 << 20);
    let path = twins.mounted().join("large");
    fs::write(&path, &data).unwrap();
    assert!(fs::read(&path).unwrap() == data);
    assert!(fs::read(twins.source().join("large")).unwrap() == data);
    let file = read_write(&path);
    for (offset, length) in [(0, 1), (4095, 2), (1 << 20, 3 << 20), ((9 << 20) - 1, 100)] {
        file.write_all_at(&vec![7; length], offset).unwrap();
    }
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    File::open(twins.mounted()).unwrap().sync_all().unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(twins.source().join("large")).unwrap());
}

#[test]
fn two_appenders_lose_nothing() {
    const LINES: usize = 500;
    let twins = Twins::new([]);
    let path = twins.mounted().join("log");
    thread::scope(|scope| {
        for writer in 0..2 {
            let path = if writer == 0 {
                path.clone()
            } else {
                twins.source().join("log")
            };
            scope.spawn(move || {
                let mut file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .unwrap();
                for line in 0..LINES {
                    file.write_all(format!("writer {writer} line {line}\n").as_bytes())
                        .unwrap();
                }
            });
        }
    });
    // what came from beside the mount shows through a new descriptor at once
    let content = fs::read_to_string(twins.source().join("log")).unwrap();
    for writer in 0..2 {
        let own: Vec<_> = content
            .lines()
            .filter(|line| line.starts_with(&format!("writer {writer} ")))
            .collect();
        assert_eq!(own.len(), LINES);
        assert!(
            own.iter()
                .enumerate()
                .all(|(at, line)| line.ends_with(&format!(" {at}")))
        );
    }
}

#[test]
fn appending_set_later_appends() {
    let twins = Twins::new([]);
    twins.same("F_SETFL", |dir| {
        let file = read_write(&dir.join("file"));
        file.write_all_at(b"0123456789", 0).unwrap();
        rustix::fs::fcntl_setfl(&file, OFlags::APPEND).unwrap();
        (&file).write_all(b"end").unwrap();
        fs::read_to_string(dir.join("file")).unwrap()
    });
}

#[test]
fn holes_are_kept_and_found() {
    let twins = Twins::new([]);
    twins.same("a sparse file", |dir| {
        let file = read_write(&dir.join("sparse"));
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&noise(65536), 1 << 20).unwrap();
        file.write_all_at(&noise(65536), 4 << 20).unwrap();
        file.sync_all().unwrap();
        let mut found = Vec::new();
        for at in [
            0,
            1 << 20,
            (1 << 20) + 65536,
            3 << 20,
            4 << 20,
            5 << 20,
            8 << 20,
            9 << 20,
        ] {
            found.push((
                seek(&file, SeekFrom::Data(at)),
                seek(&file, SeekFrom::Hole(at)),
            ));
        }
        (found, file.metadata().unwrap().blocks())
    });
    twins.script("cp --sparse=always sparse copy && cmp sparse copy && du -k sparse copy");
}

/// Beyond what 31 or 32 bits can say.
#[test]
fn far_offsets() {
    let twins = Twins::new([]);
    let said = twins.python(
        "import mmap, os
fd = os.open('file', os.O_RDWR | os.O_CREAT)
for at in (2**31 - 3, 2**32 - 3, 5 << 30):
    print(os.pwrite(fd, b'far out', at), os.pread(fd, 9, at - 1), os.lseek(fd, 1, os.SEEK_END), os.fstat(fd).st_size)
    with mmap.mmap(fd, 4096, offset=at // 4096 * 4096) as map:
        map[at % 4096] = 70
    print(os.pread(fd, 7, at), os.lseek(fd, at, os.SEEK_HOLE) > at, os.fstat(fd).st_blocks)
os.ftruncate(fd, 2**31 + 1)
print(os.stat('file').st_size, os.pread(fd, 9, 2**31 - 3), os.lseek(fd, 0, os.SEEK_DATA))",
    );
    assert!(said.contains("b'Far out'"), "{said}");
}

#[test]
fn every_mode_of_fallocate() {
    let twins = Twins::new([]);
    let allocated = |dir: &Path, mode: FallocateFlags, offset, length| {
        let path = dir.join("allocated");
        fs::write(&path, noise(300_000)).unwrap();
        let answer = fallocate(read_write(&path), mode, offset, length);
        let stat = fs::metadata(&path).unwrap();
        (answer, stat.len(), stat.blocks(), fs::read(&path).unwrap())
    };
    let keep = FallocateFlags::KEEP_SIZE;
    for mode in [
        FallocateFlags::empty(),
        keep,
        FallocateFlags::PUNCH_HOLE | keep,
        FallocateFlags::PUNCH_HOLE,
        FallocateFlags::ZERO_RANGE,
        FallocateFlags::ZERO_RANGE | keep,
        FallocateFlags::COLLAPSE_RANGE | FallocateFlags::PUNCH_HOLE,
    ] {
        for (offset, length) in [
            (0, 4096),
            (100, 10_000),
            (299_000, 50_000),
            (400_000, 8192),
            (0, 0),
            (u64::MAX >> 1, 1),
        ] {
            twins.same(&format!("{mode:?} {offset} {length}"), |dir| {
                allocated(dir, mode, offset, length)
            });
        }
    }
    twins.same_but("fallocate-shift", |dir| {
        allocated(dir, FallocateFlags::COLLAPSE_RANGE, 4096, 4096).0
    });
}

#[test]
fn copies_within_the_kernel() {
    let twins = Twins::new([]);
    twins.same("copy_file_range", |dir| {
        fs::write(dir.join("from"), noise(500_000)).unwrap();
        let (from, to) = (read_write(&dir.join("from")), read_write(&dir.join("to")));
        let mut said = Vec::new();
        for (mut input, mut output, length) in [
            (0, 0, 1000),
            (100, 5000, 400_000),
            (499_000, 0, 5000),
            (500_000, 0, 10),
            (0, 900_000, 0),
        ] {
            said.push(copy_file_range(
                &from,
                Some(&mut input),
                &to,
                Some(&mut output),
                length,
            ));
        }
        let overlap = copy_file_range(&from, Some(&mut 0), &from, Some(&mut 10), 100);
        (said, overlap, fs::read(dir.join("to")).unwrap())
    });
    twins.same("over the border", |dir| {
        let (from, other) = (
            File::open(dir.join("from")).unwrap(),
            tempfile::tempfile().unwrap(),
        );
        std::io::copy(&mut &from, &mut &other).unwrap()
    });
}

#[test]
fn direct_io() {
    let twins = Twins::new([]);
    let script = "dd if=/dev/zero bs=4096 count=64 2>/dev/null | tr '\\0' x >in
        dd if=in of=out bs=65536 iflag=direct oflag=direct status=none && cmp in out
        dd if=in of=out bs=4096 seek=10 count=1 oflag=direct conv=notrunc,fsync status=none && cmp in out";
    let said = twins.script(script);
    assert!(said.ends_with("exit status: 0"), "{said}");
}

#[test]
fn truncation() {
    let twins = Twins::new([]);
    for size in [0, 1, 4096, 100_000, 1 << 41, 1 << 60, u64::MAX >> 1] {
        twins.same(&format!("to {size}"), |dir| {
            fs::write(dir.join("file"), noise(10_000)).unwrap();
            let file = read_write(&dir.join("file"));
            let answer = file.set_len(size).map_err(|error| error.raw_os_error());
            let mut start = Vec::new();
            (&file).take(20_000).read_to_end(&mut start).unwrap();
            (answer, start, file.metadata().unwrap().len())
        });
    }
    twins.same("O_TRUNC", |dir| {
        fs::write(dir.join("file"), "long content").unwrap();
        let mut reader = File::open(dir.join("file")).unwrap();
        fs::write(dir.join("file"), "short").unwrap();
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        seen
    });
}

#[test]
fn maps_share_with_readers_and_writers() {
    let twins = Twins::new([]);
    let said = twins.python(
        "
import mmap, os
fd = os.open('mapped', os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b'a' * 10000, 0)
with mmap.mmap(fd, 10000) as shared:
    print(shared[:3], shared[9999:])
    shared[5000:5005] = b'12345'
    shared.flush()
    print(os.pread(fd, 5, 5000), open('mapped', 'rb').read()[4998:5007])
    os.pwrite(fd, b'written', 0)
    print(shared[:9])
    shared[9000:9003] = b'xyz'
    os.close(fd)
    os.unlink('mapped')
    print(shared[9000:9004])
with open('kept', 'wb') as file: file.write(b'b' * 5000)
with open('kept', 'r+b') as file, mmap.mmap(file.fileno(), 0) as shared: shared[4999:] = b'!'
print(open('kept', 'rb').read()[4990:], os.stat('kept').st_size)
with open('kept', 'rb') as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as own:
    print(own[-2:])
",
    );
    assert!(said.ends_with("exit status: 0"), "{said}");
    assert_eq!(
        fs::read(twins.source().join("kept")).unwrap(),
        fs::read(twins.plain().join("kept")).unwrap()
    );
}

/// The kernel may write to the lower file by itself, and still has to say so at once.
#[test]
fn a_write_through_a_map_changes_the_time() {
    let twins = Twins::new([]);
    let said = twins.python(
        "import mmap, os
with open('file', 'wb') as file:
    file.write(b'content')
os.utime('file', (1, 1))
print(os.stat('file').st_mtime)
with open('file', 'r+b') as file, mmap.mmap(file.fileno(), 0) as map:
    print(map[0], os.fstat(file.fileno()).st_mtime)
    map[0] = 65
    map.flush()
    print(os.fstat(file.fileno()).st_mtime > 1)
print(os.stat('file').st_mtime > 1, open('file').read())",
    );
    assert!(said.contains("True Aontent"), "{said}");
}

#[test]
fn a_temporary_file_without_any_name() {
    let twins = Twins::new([]);
    twins.same_but("o-tmpfile", |dir| {
        open(
            dir,
            OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
            Mode::RWXU,
        )
        .map(drop)
    });
}

#[test]
fn places_in_a_directory() {
    let twins = Twins::new([]);
    twins.same_but("directory-seek", |dir| {
        let fd = File::open(dir).unwrap();
        [SeekFrom::Hole(0), SeekFrom::Data(0), SeekFrom::End(0)].map(|to| seek(&fd, to))
    });
}

#[test]
fn flags_of_open_reach_the_file() {
    let twins = Twins::new([]);
    twins.same("opens", |dir| {
        fs::write(dir.join("file"), "content").unwrap();
        let flags = [
            libc::O_SYNC,
            libc::O_DSYNC,
            libc::O_NOATIME,
            libc::O_NOFOLLOW,
            libc::O_DIRECTORY,
            libc::O_NONBLOCK,
            libc::O_NOCTTY,
            libc::O_ASYNC,
        ];
        let answers = flags.map(|flag| {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .custom_flags(flag)
                .open(dir.join("file"));
            file.map(|file| (&file).write(b"x").map_err(|error| error.raw_os_error()))
                .map_err(|error| error.raw_os_error())
        });
        let mut byte = [0];
        let wrong_way = (
            File::create(dir.join("file"))
                .unwrap()
                .read(&mut byte)
                .map_err(|error| error.raw_os_error()),
            File::open(dir.join("file"))
                .unwrap()
                .write(&byte)
                .map_err(|error| error.raw_os_error()),
            rustix::io::pread(File::open(dir).unwrap(), &mut byte, 0),
        );
        assert_eq!(wrong_way.2, Err(Errno::ISDIR));
        (answers, wrong_way)
    });
}
