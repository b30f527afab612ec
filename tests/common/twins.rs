//! Two directories on one file system, one of them seen through a mount: whatever is done to both
//! must give the same answer (promise 8), but for the gaps that are known.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::mount::Mount;

/// What the mount is known to do otherwise: `name: reason`, one per line.
const KNOWN_GAPS: &str = include_str!("../known-gaps.txt");

const EXT4_SUPER_MAGIC: i64 = 0xef53;

/// Whether this deviation from the source is a known one.
pub fn is_known_gap(name: &str) -> bool {
    known_gaps().any(|(known, _)| known == name)
}

/// All known gaps with their reasons.
fn known_gaps() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = KNOWN_GAPS.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, reason) = line.split_once(':').expect("a name, a colon, a reason");
            (name.trim(), reason.trim())
        })
}

/// A mounted source and a plain directory beside it.
pub struct Twins {
    // first: the mount goes before what it lies on
    pub mount: Mount,
    dir: TempDir,
}

impl Twins {
    /// With the embedded store and further options of `nodbfs mount`.
    pub fn new<'a>(args: impl IntoIterator<Item = &'a str>) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["source", "plain", "mnt"] {
            fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        // others than the test's own user come in here too
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("our own");
        let mount = Mount::builder(dir.path().join("source"))
            .mountpoint(dir.path().join("mnt"))
            .args(args)
            .start();
        Self { mount, dir }
    }

    /// The mounted one.
    pub fn mounted(&self) -> &Path {
        self.mount.path()
    }

    /// What is mounted, beneath.
    pub fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// The one that is not mounted.
    pub fn plain(&self) -> PathBuf {
        self.dir.path().join("plain")
    }

    /// Does it to both and wants the same answer.
    pub fn same<T: Debug + PartialEq>(&self, what: &str, act: impl Fn(&Path) -> T) {
        self.agreed(what, act);
    }

    /// Does it to both and returns the answer, the same of course.
    pub fn agreed<T: Debug + PartialEq>(&self, what: &str, act: impl Fn(&Path) -> T) -> T {
        let (mounted, plain) = (act(self.mounted()), act(&self.plain()));
        assert_eq!(mounted, plain, "{what}: on the mount, and on the source");
        mounted
    }

    /// As `same`, unless the gap is a known one: then the answers differ, or it is none any more.
    /// Other sources than ext4 may not be able to do it either.
    pub fn same_but<T: Debug + PartialEq>(&self, gap: &str, act: impl Fn(&Path) -> T) {
        if !is_known_gap(gap) {
            self.same(gap, act);
            return;
        }
        let (mounted, plain) = (act(self.mounted()), act(&self.plain()));
        assert!(
            mounted != plain || !self.is_on_ext4(),
            "the known gap {gap:?} is closed: strike it off"
        );
    }

    fn is_on_ext4(&self) -> bool {
        rustix::fs::statfs(self.source()).is_ok_and(|stat| stat.f_type == EXT4_SUPER_MAGIC)
    }

    /// What a script of the shell says and how it ends, in both directories.
    pub fn script(&self, script: &str) -> String {
        self.agreed(script, |dir| output(dir, &mut Command::new("sh"), script))
    }

    /// What a Python program prints and how it ends, in both directories.
    pub fn python(&self, program: &str) -> String {
        self.agreed(program, |dir| {
            output(dir, &mut Command::new("python3"), program)
        })
    }

    /// As `script`, by another user; `groups` are the supplementary ones, separated by commas.
    pub fn script_as(&self, uid: u32, gid: u32, groups: &str, script: &str) -> String {
        let groups = match groups {
            "" => "--clear-groups".to_owned(),
            groups => format!("--groups={groups}"),
        };
        self.agreed(&format!("{uid}:{gid} {groups}: {script}"), |dir| {
            let mut command = Command::new("setpriv");
            command.args([
                &format!("--reuid={uid}"),
                &format!("--regid={gid}"),
                &groups,
            ]);
            output(dir, command.arg("sh"), script)
        })
    }
}

fn output(dir: &Path, shell: &mut Command, script: &str) -> String {
    shell.args([OsStr::new("-c"), OsStr::new(script)]);
    let ran = shell.current_dir(dir).env("LC_ALL", "C").env("TZ", "UTC");
    let output = ran.stdin(Stdio::null()).output().expect("a shell");
    format!(
        "{}{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        output.status
    )
}
