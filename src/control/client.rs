//! The asking end: finds the daemon that serves a path, without touching the mount, or answers in this
//! process where there is none.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Component, Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::net::sockopt::socket_peercred;

use super::server::{address, converse};
use super::wire::Channel;
use super::{Answer, Context, Request};
use crate::build;
use crate::config::Config;
use crate::hint::Hinted;
use crate::mount::Source;
use crate::mount::table::{self, Mounted};

/// How long a daemon may take to say how it is. One that is stopped takes for ever, and asking its store
/// takes the store's own time limits.
const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon that has just mounted may still be waiting for another one, whose mount had the same number, to let go of
/// the socket's name.
const TAKEN: Duration = Duration::from_secs(1);

/// How often it is tried meanwhile.
const AGAIN: Duration = Duration::from_millis(20);

/// A conversation with whoever answers.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    /// Answers where no daemon does.
    here: Option<JoinHandle<()>>,
}

/// Nobody is at the other end any more.
#[derive(Debug, thiserror::Error)]
#[error("the daemon has hung up")]
struct HungUp;

impl Client {
    /// With the daemon of a mount.
    pub fn of(mounted: &Mounted) -> Result<Self> {
        let start = Instant::now();
        loop {
            let mut client = Self::connected(mounted)?;
            match client.greet() {
                // it was the one before, which is about to end
                Err(error) if is_hang_up(&error) && start.elapsed() < TAKEN => thread::sleep(AGAIN),
                greeted => return greeted.map(|()| client),
            }
        }
    }

    /// Makes sure that somebody answers.
    fn greet(&mut self) -> Result<()> {
        self.channel.stream().set_read_timeout(Some(PATIENCE))?;
        self.ask(&Request::Source, |_| Ok(()))?;
        Ok(self.channel.stream().set_read_timeout(None)?)
    }

    fn connected(mounted: &Mounted) -> Result<Self> {
        let connected = connect(mounted.dev);
        let stream = connected.with_context(|| {
            Hinted::failure(
                format!(
                    "the daemon of the mount at {} does not answer",
                    mounted.at.display()
                ),
                "has it crashed, or does it run in another network namespace?",
            )
        })?;
        // anybody can take the name of a mount that is not answered for
        let answers = socket_peercred(&stream)?.uid.as_raw();
        if ![Some(0), mounted.owner].contains(&Some(answers)) {
            bail!("user {answers}, who has not mounted it, answers in the daemon's place");
        }
        Ok(Self {
            channel: Channel::new(stream, u64::MAX)?,
            here: None,
        })
    }

    /// With the daemon of a mount, for questions that every daemon answers at once.
    pub fn briefly(mounted: &Mounted) -> Result<Self> {
        let client = Self::of(mounted)?;
        client.channel.stream().set_read_timeout(Some(PATIENCE))?;
        Ok(client)
    }

    /// With this process itself, which works on the source and the store that `config` names.
    pub fn here(config: &Config) -> Result<Self> {
        let (asking, answering) = UnixStream::pair()?;
        let built = build::offline(config, Source::open(&config.source)?)?;
        let context = Context::new(&built.fs, config.source.clone(), None, config.read_only);
        let answer = move || {
            converse(answering, &context);
            built.end();
        };
        let thread = thread::Builder::new().name("nodbfs-answer".to_owned());
        let here = thread.spawn(answer).context("cannot start a thread")?;
        Ok(Self {
            channel: Channel::new(asking, u64::MAX)?,
            here: Some(here),
        })
    }

    /// Asks, and gives `each` the answers as they come.
    pub fn ask(
        &mut self,
        request: &Request,
        mut each: impl FnMut(Answer) -> Result<()>,
    ) -> Result<()> {
        self.send(request, &[])?;
        while let Some((answer, _)) = self.hear()? {
            each(answer)?;
        }
        Ok(())
    }

    /// Asks, with bytes behind the question.
    pub fn send(&mut self, request: &Request, body: &[u8]) -> Result<()> {
        match self.channel.send(request, body) {
            // whoever has hung up may have said why
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// The next answer and its bytes; `None`: that was the last.
    ///
    /// # Errors
    /// A [`Failure`](super::Failure): it could not be done.
    pub fn hear(&mut self) -> Result<Option<(Answer, Vec<u8>)>> {
        let heard = self.channel.receive().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                anyhow!("the daemon does not answer: is it stopped?")
            }
            _ => error.into(),
        });
        match heard? {
            Some((Answer::Done, _)) => Ok(None),
            Some((Answer::Failed(failure), _)) => Err(failure.into()),
            Some(answer) => Ok(Some(answer)),
            None => Err(HungUp.into()),
        }
    }
}

fn is_hang_up(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    error.is::<HungUp>() || kind == Some(ErrorKind::ConnectionReset)
}

fn connect(dev: (u32, u32)) -> io::Result<UnixStream> {
    let (at, start) = (address(dev)?, Instant::now());
    loop {
        match UnixStream::connect_addr(&at) {
            Err(error)
                if error.kind() == ErrorKind::ConnectionRefused && start.elapsed() < TAKEN =>
            {
                thread::sleep(AGAIN);
            }
            connected => return connected,
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // what it holds it gives back before the process ends
        let _ = self.channel.stream().shutdown(std::net::Shutdown::Both);
        if let Some(here) = self.here.take() {
            let _ = here.join();
        }
    }
}

/// A path as it is seen from the root, and the nodbfs mount it lies on.
#[derive(Debug)]
pub struct Located {
    /// Absolute; symlinks are resolved up to the mount, and not below it.
    pub path: PathBuf,
    pub mounted: Option<Mounted>,
}

impl Located {
    /// Finds `path`. Nothing at or below a mount of ours is touched: it may be stuck.
    ///
    /// # Errors
    /// The mount table or the working directory cannot be read.
    pub fn find(path: &Path) -> Result<Self> {
        let mounts = table::all().context("cannot read the mount table")?;
        let start = std::env::current_dir().context("cannot tell the working directory")?;
        let path = resolve(&mounts, &start.join(path));
        let mounted = mount_of(&mounts, &path).filter(|mounted| mounted.is_ours());
        Ok(Self {
            mounted: mounted.cloned(),
            path,
        })
    }

    /// The path below its mount.
    pub fn below(&self) -> Option<&Path> {
        self.path.strip_prefix(&self.mounted.as_ref()?.at).ok()
    }
}

impl Located {
    /// The daemon that has the path below its source, and the path below that.
    ///
    /// # Errors
    /// The mount table cannot be read.
    pub fn served(&self) -> Result<Option<(Client, PathBuf)>> {
        let mounts = table::all().context("cannot read the mount table")?;
        for mounted in mounts.iter().filter(|mounted| mounted.is_ours()) {
            // one that cannot be asked serves nobody
            let Ok(mut client) = Client::briefly(mounted) else {
                continue;
            };
            let mut source = None;
            let asked = client.ask(&Request::Source, |answer| {
                if let Answer::Source(path) = answer {
                    source = Some(resolve(&mounts, Path::new(&path)));
                }
                Ok(())
            });
            if let (Ok(()), Some(source)) = (asked, source)
                && let Ok(below) = self.path.strip_prefix(source)
            {
                client.channel.stream().set_read_timeout(None)?;
                return Ok(Some((client, below.to_owned())));
            }
        }
        Ok(None)
    }
}

/// The mount that `path` lies on: of those above it the one that came last.
fn mount_of<'a>(mounts: &'a [Mounted], path: &Path) -> Option<&'a Mounted> {
    mounts.iter().rfind(|mounted| path.starts_with(&mounted.at))
}

/// Resolves symlinks as the kernel would, up to a mount of ours.
fn resolve(mounts: &[Mounted], path: &Path) -> PathBuf {
    /// As the kernel's own limit.
    const MOST_LINKS: usize = 40;
    let mut links = 0;
    let mut left: Vec<PathBuf> = vec![path.to_owned()];
    let mut resolved = PathBuf::from("/");
    while let Some(part) = left.pop() {
        let mut components = part.components();
        let Some(component) = components.next() else {
            continue;
        };
        left.push(components.as_path().to_owned());
        match component {
            Component::RootDir => resolved = PathBuf::from("/"),
            Component::ParentDir => drop(resolved.pop()),
            Component::CurDir | Component::Prefix(_) => {}
            Component::Normal(name) => {
                resolved.push(name);
                let ours = mount_of(mounts, &resolved).is_some_and(Mounted::is_ours);
                if !ours
                    && links < MOST_LINKS
                    && let Ok(target) = fs::read_link(&resolved)
                {
                    links += 1;
                    resolved.pop();
                    left.push(target);
                }
            }
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::cli::mount::MountArgs;

    fn mounted(at: &Path, kind: &str) -> Mounted {
        Mounted {
            dev: (0, 1),
            at: at.to_owned(),
            kind: kind.to_owned(),
            source: String::new(),
            owner: None,
            read_only: false,
        }
    }

    #[test]
    fn symlinks_are_followed_to_a_mount_and_no_further() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().canonicalize().unwrap();
        let at = top.join("mnt");
        fs::create_dir_all(at.join("dir")).unwrap();
        symlink(&at, top.join("absolute")).unwrap();
        symlink("./mnt/../mnt", top.join("relative")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        symlink("dir", at.join("inner")).unwrap();
        let mounts = [mounted(Path::new("/"), "ext4"), mounted(&at, table::KIND)];
        for (path, expected) in [
            ("mnt/inner/x", "mnt/inner/x"),
            ("absolute/inner/./x", "mnt/inner/x"),
            ("relative/a/../b", "mnt/b"),
            ("mnt/../relative", "mnt"),
            ("none/x", "none/x"),
        ] {
            assert_eq!(resolve(&mounts, &top.join(path)), top.join(expected));
        }
        assert!(resolve(&mounts, &top.join("loop/x")).ends_with("x"));
    }

    #[test]
    fn the_mount_on_top_counts() {
        let mounts = [
            mounted(Path::new("/"), "ext4"),
            mounted(Path::new("/a"), table::KIND),
            mounted(Path::new("/a/b"), "tmpfs"),
            mounted(Path::new("/c/d"), table::KIND),
            mounted(Path::new("/c"), "tmpfs"),
        ];
        let ours = |path| mount_of(&mounts, Path::new(path)).unwrap().is_ours();
        assert!(ours("/a/x") && ours("/a"));
        assert!(!ours("/a/b/x") && !ours("/ab") && !ours("/c/d/x"));
    }

    #[test]
    fn without_a_mount_this_process_answers() {
        let (run, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = Config::resolve(MountArgs {
            source: run.path().to_owned(),
            mountpoint: run.path().to_owned(),
            state_dir: Some(state.path().to_owned()),
            ..MountArgs::default()
        });
        let mut client = Client::here(&config.unwrap()).unwrap();
        let mut answers = Vec::new();
        let asked = client.ask(&Request::Status, |answer| {
            answers.push(answer);
            Ok(())
        });
        asked.unwrap();
        let [Answer::Status(status)] = &answers[..] else {
            panic!("{answers:?}");
        };
        assert_eq!(status.pid, std::process::id());
        assert_eq!(status.mountpoint, None);
    }
}
