//! The kernel's mount table. Asking it never waits for a file system, stale or stuck as it may be.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::hint::Hinted;

/// The file system type under which the kernel lists our mounts.
pub const KIND: &str = "fuse.nodbfs";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The device number, as `st_dev` has it: major, minor.
    pub dev: (u32, u32),
    /// The mount point, symlinks resolved.
    pub at: PathBuf,
    /// The type, such as `ext4` or `fuse.nodbfs`.
    pub kind: String,
    /// What was mounted; for us the source directory.
    pub source: String,
    /// Who mounted it, where the kernel says so: of FUSE mounts.
    pub owner: Option<u32>,
    /// Nothing can be written through it.
    pub read_only: bool,
}

impl Mounted {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.kind == KIND
    }
}

/// All mounts of this mount namespace, the ones on top last.
pub fn all() -> io::Result<Vec<Mounted>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// The mount that one sees at `at`, if that is a mount point.
pub fn top(at: &Path) -> io::Result<Option<Mounted>> {
    Ok(all()?.into_iter().rfind(|mounted| mounted.at == at))
}

/// A path as the table has it: symlinks resolved, but a mount point that no longer answers is not asked.
///
/// # Errors
/// There is no such directory, or it cannot be reached.
pub fn canonical(path: &Path) -> Result<PathBuf> {
    let resolved = path
        .canonicalize()
        .or_else(|cause| match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if cause.raw_os_error() == Some(libc::ENOTCONN) => {
                let parent = if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                };
                Ok(parent.canonicalize()?.join(name))
            }
            _ => Err(cause),
        });
    resolved.with_context(|| {
        Hinted::failure(
            format!("cannot find the mount point {}", path.display()),
            "check the path; 'findmnt -t fuse.nodbfs' lists what is mounted",
        )
    })
}

/// `id parent major:minor root mount-point options tags… - type source super-options`, proc(5).
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let at = unescape(fields.nth(1)?);
    let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
    let mounted_read_only = is_read_only(std::str::from_utf8(fields.next()?).ok()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let mut text = || Some(unescape(rest.next()?).to_string_lossy().into_owned());
    let (kind, source, options) = (text()?, text()?, text().unwrap_or_default());
    let mut each = options.split(',');
    Some(Mounted {
        dev: (major.parse().ok()?, minor.parse().ok()?),
        at: at.into(),
        kind,
        source,
        owner: each.find_map(|option| option.strip_prefix("user_id=")?.parse().ok()),
        read_only: mounted_read_only || is_read_only(&options),
    })
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_tags_and_escapes() {
        let line = br"36 35 0:42 / /mnt/my\040run\134x rw,noatime shared:1 master:2 - fuse.nodbfs /wc1/a\011b rw,user_id=7,group_id=8";
        let expected = Mounted {
            dev: (0, 42),
            at: r"/mnt/my run\x".into(),
            kind: "fuse.nodbfs".into(),
            source: "/wc1/a\tb".into(),
            owner: Some(7),
            read_only: false,
        };
        assert_eq!(parse(line), Some(expected));
        // the mount alone, or the file system
        for line in [
            &b"36 35 0:42 / /mnt ro,noatime - ext4 /dev/x rw"[..],
            b"36 35 0:42 / /mnt rw,noatime - ext4 /dev/x ro",
        ] {
            assert!(parse(line).unwrap().read_only);
        }
    }

    #[test]
    fn a_line_that_is_none() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 nonsense / /mnt rw - ext4 /dev/x rw"), None);
        assert_eq!(parse(b"36 35 0:42 / /mnt rw"), None);
    }

    #[test]
    fn this_machine_has_a_proc() {
        assert_eq!(top(Path::new("/proc")).unwrap().unwrap().kind, "proc");
        assert_eq!(top(Path::new("/proc/self")).unwrap(), None);
    }
}
