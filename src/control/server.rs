//! The answering end: the daemon's socket, and who may ask.
//!
//! The socket has an abstract name made of the mount's device number, like the one by which
//! `umount` waits ([`presence`](crate::mount::presence)): nothing is left on disk after a crash. The
//! daemon's own user and root may ask; others work with the files on the mount, where every file's
//! own permissions count.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{Shutdown as How, shutdown};
use rustix::process::geteuid;
use tracing::{debug, warn};

use super::wire::Channel;
use super::{Answer, Context, Failure, Peer, handle};
use crate::fs::credentials::Caller;

/// How many may ask at the same time: some only listen, for hours.
const MOST: usize = 64;

/// How often a name that is taken is tried again: by a daemon that has not quite ended.
const AGAIN: Duration = Duration::from_millis(20);

/// How long the end of a mount waits for what is under way: as long as for what came through the kernel.
const DRAIN: Duration = Duration::from_secs(10);

/// Where the daemon of the mount with this device number answers.
pub fn address((major, minor): (u32, u32)) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("nodbfs-control-{major}:{minor}"))
}

/// A daemon's answering end, until it is dropped.
#[derive(Debug)]
pub struct Server(Arc<Context>);

/// The conversations of a daemon.
///
/// Lock order: `open` and `listener` are each taken alone, and held across nothing that can wait.
#[derive(Debug, Default)]
pub struct Talks {
    /// To be woken by; `None` while its name is taken.
    listener: Mutex<Option<UnixListener>>,
    open: Mutex<Open>,
    closed: Condvar,
}

/// Those that are under way.
#[derive(Debug, Default)]
struct Open {
    streams: HashMap<u64, UnixStream>,
    opened: u64,
    /// No more questions are taken; what is under way is waited for until then.
    until: Option<Instant>,
}

impl Server {
    /// Answers for the mount with the device number `dev`, on threads of its own.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(dev: (u32, u32), context: Arc<Context>) -> io::Result<Self> {
        let server = Self(context.clone());
        let listener = bind(dev);
        let thread = thread::Builder::new().name("nodbfs-control".to_owned());
        thread.spawn(move || listen(&context, listener, dev))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.talks.end();
    }
}

fn listen(context: &Arc<Context>, mut listener: Option<UnixListener>, dev: (u32, u32)) {
    let talks = &context.talks;
    let listener = loop {
        if talks.have_ended() {
            return;
        }
        if let Some(listener) = listener {
            break listener;
        }
        thread::sleep(AGAIN);
        listener = bind(dev);
    };
    *talks.listener.lock() = listener.try_clone().ok();
    if talks.have_ended() {
        return;
    }
    for stream in listener.incoming() {
        if talks.have_ended() {
            return;
        }
        match stream {
            Ok(stream) => accept(stream, context),
            Err(error) => {
                if talks.have_ended() {
                    return;
                }
                warn!(%error, "a question could not be taken");
                // out of descriptors, perhaps
                thread::sleep(AGAIN);
            }
        }
    }
}

fn accept(stream: UnixStream, context: &Arc<Context>) {
    let Ok(known) = stream.try_clone() else {
        return;
    };
    let refusal = match context.talks.enter(known) {
        Ok(id) => {
            let shared = context.clone();
            let talk = move || {
                converse(stream, &shared);
                shared.talks.leave(id);
            };
            let thread = thread::Builder::new().name("nodbfs-answer".to_owned());
            if thread.spawn(talk).is_err() {
                context.talks.leave(id);
            }
            return;
        }
        Err(refusal) => refusal,
    };
    // the message fits into the socket's buffer, so nobody is waited for
    let told =
        Channel::new(stream, 0).and_then(|mut channel| channel.send(&Answer::Failed(refusal), &[]));
    if let Err(error) = told {
        debug!(%error, "refused, and not told");
    }
}

impl Talks {
    /// Takes no more questions, and waits until those that were asked are answered. Called again, it waits for
    /// what is left of its time.
    pub fn end(&self) {
        let until = {
            let mut open = self.open.lock();
            for stream in open.streams.values() {
                // for reading only: the answer is still to come. Whoever has hung up already is as good
                let _ = stream.shutdown(Shutdown::Read);
            }
            *open.until.get_or_insert_with(|| Instant::now() + DRAIN)
        };
        // whoever mounts next may get the same device number, and needs the name
        if let Some(listener) = self.listener.lock().take() {
            let _ = shutdown(&listener, How::Both);
        }
        let mut open = self.open.lock();
        while !open.streams.is_empty() {
            if self.closed.wait_until(&mut open, until).timed_out() {
                return warn!("conversations are still under way: they end with the process");
            }
        }
    }

    fn have_ended(&self) -> bool {
        self.open.lock().until.is_some()
    }

    fn enter(&self, stream: UnixStream) -> Result<u64, Failure> {
        let caller = caller(&stream)?;
        if ![0, geteuid().as_raw()].contains(&caller.uid) {
            return Err(Failure::new(
                "only the user who mounted it and root may ask this daemon",
                "ask as that user; the files on the mount answer to whoever may read them",
            ));
        }
        let mut open = self.open.lock();
        if open.streams.len() == MOST {
            return Err(Failure::new(
                format!("{MOST} conversations are under way already"),
                "end one of them, such as a 'nodbfs log -f'",
            ));
        }
        if open.until.is_some() {
            // it came too late to be told of the end with the others
            let _ = stream.shutdown(Shutdown::Read);
        }
        open.opened += 1;
        let id = open.opened;
        open.streams.insert(id, stream);
        Ok(id)
    }

    fn leave(&self, id: u64) {
        self.open.lock().streams.remove(&id);
        self.closed.notify_all();
    }
}

fn bind(dev: (u32, u32)) -> Option<UnixListener> {
    address(dev)
        .and_then(|address| UnixListener::bind_addr(&address))
        .inspect_err(|error| debug!(%error, "no control socket yet"))
        .ok()
}

/// Who is at the other end, as it was when it connected.
fn caller(stream: &UnixStream) -> io::Result<Caller> {
    let peer = socket_peercred(stream)?;
    Ok(Caller {
        uid: peer.uid.as_raw(),
        gid: peer.gid.as_raw(),
        tid: peer.pid.as_raw_nonzero().get() as u32,
    })
}

/// Answers whatever is asked over `stream` until the other end hangs up.
pub fn converse(stream: UnixStream, context: &Context) {
    if let Err(error) = answer_all(stream, context) {
        debug!(%error, "a conversation broke");
    }
}

fn answer_all(stream: UnixStream, context: &Context) -> io::Result<()> {
    let caller = caller(&stream)?;
    let max_payload = context.fs().map_or(0, |fs| fs.nodb().max_payload());
    let mut channel = Channel::new(stream, max_payload)?;
    loop {
        let (request, _) = match channel.receive() {
            Ok(Some(asked)) => asked,
            Ok(None) => return Ok(()),
            Err(error) => {
                let refusal = Failure::new(
                    format!("not understood: {error}"),
                    "is the daemon of another release? Mount again",
                );
                return channel.send(&Answer::Failed(refusal), &[]);
            }
        };
        let mut peer = Peer {
            channel: &mut channel,
            caller,
        };
        let last = match handle(context, &mut peer, request) {
            Ok(()) => Answer::Done,
            Err(failure) => Answer::Failed(failure),
        };
        channel.send(&last, &[])?;
    }
}
