//! Who owns a lock, and when its process ends.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Errno, Result};

/// Whether the thread `tid` is asking for a lock that is to belong to an open file description rather than
/// to its process: the kernel's request does not say.
pub fn locks_by_description(tid: u32) -> bool {
    // the number of the system call, its arguments, stack and instruction pointer
    let call = fs::read_to_string(format!("/proc/{tid}/syscall")).unwrap_or_default();
    let command = call.split_whitespace().nth(2);
    let command = command.and_then(|hex| i32::from_str_radix(hex.strip_prefix("0x")?, 16).ok());
    matches!(command, Some(libc::F_OFD_SETLK | libc::F_OFD_SETLKW))
}

/// Tells of the end of processes, from one thread that is started when it is needed.
#[derive(Debug, Default)]
pub struct Ends {
    watched: Mutex<Option<Arc<Watched>>>,
}

#[derive(Debug)]
struct Watched {
    epoll: OwnedFd,
    processes: Mutex<Processes>,
}

#[derive(Debug, Default)]
struct Processes {
    last: u64,
    watched: HashMap<u64, Process>,
}

struct Process {
    _pidfd: OwnedFd,
    ended: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

/// A process is watched until this is dropped.
#[derive(Debug)]
pub struct Watch {
    watched: Arc<Watched>,
    number: u64,
}

impl Ends {
    /// Calls `ended` once the process `pid` has ended. ESRCH: it is gone, or out of sight.
    pub fn watch(&self, pid: u32, ended: impl FnOnce() + Send + 'static) -> Result<Watch> {
        let watched = self.started()?;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
        let mut processes = watched.processes.lock();
        processes.last += 1;
        let number = processes.last;
        let data = epoll::EventData::new_u64(number);
        // it is readable at once if the process has ended, and the thread waits for `processes`
        let once = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        epoll::add(&watched.epoll, &pidfd, data, once)?;
        let process = Process {
            _pidfd: pidfd,
            ended: Box::new(ended),
        };
        processes.watched.insert(number, process);
        drop(processes);
        Ok(Watch { watched, number })
    }

    fn started(&self) -> Result<Arc<Watched>> {
        let mut started = self.watched.lock();
        if let Some(watched) = &*started {
            return Ok(watched.clone());
        }
        let watched = Arc::new(Watched {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            processes: Mutex::default(),
        });
        let served = watched.clone();
        thread::Builder::new()
            .name("nodbfs-ends".to_owned())
            .spawn(move || served.serve())?;
        Ok(started.insert(watched).clone())
    }
}

impl Watched {
    fn serve(&self) {
        let mut events = Vec::with_capacity(16);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    let error = io::Error::from(errno);
                    tracing::warn!(%error, "the end of processes is no longer noticed");
                    return;
                }
            }
            for event in events.drain(..) {
                let ended = self.processes.lock().watched.remove(&event.data.u64());
                if let Some(process) = ended {
                    (process.ended)();
                }
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.watched.processes.lock().watched.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::sync::mpsc::channel;

    #[test]
    fn the_end_of_a_process_is_told_once_and_not_to_who_no_longer_asks() {
        let ends = Ends::default();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let (tell, told) = channel();
        let forgotten = tell.clone();
        drop(ends.watch(child.id(), move || forgotten.send("forgotten").unwrap()));
        let _watch = ends.watch(child.id(), move || tell.send("ended").unwrap());
        child.kill().unwrap();
        let first = told.recv();
        child.wait().unwrap();
        assert_eq!(first, Ok("ended"));
        assert!(told.recv().is_err(), "both are gone");
        assert_eq!(
            ends.watch(child.id(), || ()).unwrap_err().errno(),
            Errno::SRCH
        );
    }

    #[test]
    fn nobody_asks_by_description() {
        assert!(!locks_by_description(0));
    }
}
