//! Whole trees compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::test_runner::TestCaseError;
use rustix::fs::{AtFlags, CWD, FileType, statat};

use crate::act::{content, stat_of, xattrs};

/// Files beyond this are sparse and compared by their beginning.
const READ: u64 = 4 << 20;

type Tree = BTreeMap<PathBuf, String>;

/// Both hold the same names, each with the same type, mode, size, links, content and attributes.
pub fn alike(mounted: &Path, plain: &Path) -> Result<(), TestCaseError> {
    compare(describe(mounted, false)?, describe(plain, false)?)
}

/// The mount shows its source to the last attribute, and numbers included.
pub fn identical(mounted: &Path, source: &Path) -> Result<(), TestCaseError> {
    compare(describe(mounted, true)?, describe(source, true)?)
}

fn compare(left: Tree, right: Tree) -> Result<(), TestCaseError> {
    if left == right {
        return Ok(());
    }
    let only = |one: &Tree, other: &Tree| -> Vec<String> {
        let differ = one.iter().filter(|(path, is)| other.get(*path) != Some(is));
        differ
            .map(|(path, is)| format!("  {}: {is}", path.display()))
            .collect()
    };
    Err(TestCaseError::fail(format!(
        "the trees differ\nmount:\n{}\nsource:\n{}",
        only(&left, &right).join("\n"),
        only(&right, &left).join("\n")
    )))
}

fn describe(root: &Path, exact: bool) -> Result<Tree, TestCaseError> {
    let mut tree = Tree::new();
    // which names are one file
    let mut files: HashMap<u64, PathBuf> = HashMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let fail = |error: &dyn std::fmt::Display| {
            TestCaseError::fail(format!("{}: {error}", path.display()))
        };
        let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
        let stat = statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| fail(&error))?;
        let first = files.entry(stat.st_ino).or_insert_with(|| relative.clone());
        let mut is = format!("{} same file as {:?}", stat_of(&stat), first);
        if exact {
            is += &format!(
                " number {} blocks {} mtime {}.{:09} ctime {}.{:09}",
                stat.st_ino,
                stat.st_blocks,
                stat.st_mtime,
                stat.st_mtime_nsec,
                stat.st_ctime,
                stat.st_ctime_nsec
            );
        }
        is += &format!(" {:?}", xattrs(&path).map_err(|error| fail(&error))?);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let mut names: Vec<_> = fs::read_dir(&path)
                    .and_then(Iterator::collect::<Result<_, _>>)
                    .map_err(|error| fail(&error))?;
                names.sort_by_key(fs::DirEntry::path);
                for entry in names {
                    if exact {
                        tree.insert(
                            relative
                                .join(entry.file_name())
                                .join("number in the listing"),
                            entry_number(&entry),
                        );
                    }
                    left.push(entry.path());
                }
            }
            FileType::RegularFile => is += &read(&path).map_err(|error| fail(&error))?,
            FileType::Symlink => {
                is += &format!(
                    " to {:?}",
                    fs::read_link(&path).map_err(|error| fail(&error))?
                )
            }
            _ => {}
        }
        tree.insert(relative, is);
    }
    Ok(tree)
}

/// `d_ino`, as `ls -i` shows it.
fn entry_number(entry: &fs::DirEntry) -> String {
    use std::os::unix::fs::DirEntryExt;
    entry.ino().to_string()
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut data = Vec::new();
    let file = fs::File::open(path)?;
    let size = file.metadata()?.size();
    file.take(READ).read_to_end(&mut data)?;
    Ok(format!(" of {size}: {}", content(&data)))
}
