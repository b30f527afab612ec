//! Everything is killed, stopped or emptied in turn.

use std::sync::atomic::Ordering::SeqCst;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;

use crate::ground::Ground;
use crate::ledger::Company;
use crate::sample::Rng;

/// One blow. Hosts by their number.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// `kill -9` of a daemon, and a mount over the stale one.
    CrashDaemon(usize),
    CrashBothDaemons,
    /// SIGSTOP for longer than the lease, some times.
    StopDaemon(usize),
    /// SIGTERM and a new mount.
    EndDaemon(usize),
    /// `kill -9` of redis-server, which comes back with all it has confirmed.
    CrashRedis,
    /// The same, and it comes back empty.
    LoseRedis,
    /// SIGSTOP for longer than anybody waits for an answer.
    StopRedis,
    FlushRedis,
    /// `CLIENT KILL` of all connections.
    CutConnections,
    /// `kill -9` of writers in the middle of a document.
    KillWriters,
    /// `DEL` of locks that nodbfs holds.
    TakeLocks,
}

use Blow::*;

const DECK: [Blow; 15] = [
    CrashDaemon(0),
    CrashDaemon(1),
    CrashBothDaemons,
    StopDaemon(0),
    StopDaemon(1),
    StopDaemon(0),
    StopDaemon(1),
    EndDaemon(0),
    EndDaemon(1),
    CrashRedis,
    LoseRedis,
    StopRedis,
    FlushRedis,
    CutConnections,
    TakeLocks,
];

/// The blows of one round: each of the deck once, in an order that the seed decides, with writers killed in between.
pub fn round(ground: &Ground, rng: &mut Rng) -> Result<()> {
    let mut deck = DECK.to_vec();
    for last in (1..deck.len()).rev() {
        deck.swap(last, rng.int(0, last as i64 + 1) as usize);
    }
    for blow in deck {
        if ground.report.is_over() {
            break;
        }
        sleep(Duration::from_millis(rng.int(200, 900) as u64));
        strike(ground, KillWriters, rng)?;
        strike(ground, blow, rng)?;
    }
    Ok(())
}

fn strike(ground: &Ground, blow: Blow, rng: &mut Rng) -> Result<()> {
    ground.report.event(&format!("{blow:?}"));
    let mut pause = |low, high| sleep(Duration::from_millis(rng.int(low, high) as u64));
    match blow {
        CrashDaemon(host) => {
            ground.hosts[host].crash()?;
            ground.report.crash();
            pause(0, 600);
            ground.hosts[host].start()?;
        }
        CrashBothDaemons => {
            for host in &ground.hosts {
                host.crash()?;
                ground.report.crash();
                pause(0, 20);
            }
            for host in &ground.hosts {
                host.start()?;
            }
        }
        StopDaemon(host) => {
            for _ in 0..4 {
                ground.hosts[host].signal(Signal::STOP)?;
                pause(450, 900);
                ground.hosts[host].signal(Signal::CONT)?;
                pause(20, 120);
            }
        }
        EndDaemon(host) => {
            ground.hosts[host].end()?;
            ground.hosts[host].start()?;
        }
        CrashRedis => harm_redis(ground, || {
            ground.report.crash();
            let mut redis = ground.redis.lock();
            redis.kill();
            pause(0, 1000);
            redis.restart();
            Ok(())
        })?,
        LoseRedis => {
            let _truce = ground.truce.write();
            wipe(ground, || {
                ground.report.crash();
                let mut redis = ground.redis.lock();
                redis.kill();
                redis.forget();
                pause(0, 1000);
                redis.restart();
                Ok(())
            })?;
        }
        StopRedis => {
            let before = done(ground);
            harm_redis(ground, || {
                let redis = ground.redis.lock();
                redis.pause();
                pause(2200, 3500);
                // plain files never wait for Redis (promise 8)
                for (host, before) in before.iter().enumerate() {
                    if done(ground)[host] == *before {
                        let name = ground.hosts[host].name;
                        let words = "nothing was done on plain files while Redis was stopped";
                        ground.report.violation(name, words);
                    }
                }
                redis.cont();
                Ok(())
            })?;
        }
        FlushRedis => {
            let _truce = ground.truce.write();
            wipe(ground, || Ok(ground.ask(0, &["FLUSHALL"])?))?;
        }
        CutConnections => harm_redis(ground, || {
            for _ in 0..5 {
                ground.ask::<()>(0, &["CLIENT", "KILL", "TYPE", "normal"])?;
                pause(0, 50);
            }
            Ok(())
        })?,
        KillWriters => drop(ground.condemned.fetch_add(2, SeqCst)),
        TakeLocks => {
            let key = ground.book(Company::Tools).lock_key();
            for _ in 0..40 {
                ground.ask::<()>(0, &["DEL", &key])?;
                pause(0, 25);
            }
        }
    }
    Ok(())
}

/// What the workers on plain files have done.
fn done(ground: &Ground) -> [u64; 2] {
    [0, 1].map(|host: usize| ground.plain_done[host].load(SeqCst))
}

fn harm_redis(ground: &Ground, harm: impl FnOnce() -> Result<()>) -> Result<()> {
    ground.redis_epoch.fetch_add(1, SeqCst);
    let harmed = harm();
    ground.redis_epoch.fetch_add(1, SeqCst);
    harmed
}

/// As `harm_redis`, for what takes the stranger's lock away.
fn wipe(ground: &Ground, harm: impl FnOnce() -> Result<()>) -> Result<()> {
    ground.wipes.fetch_add(1, SeqCst);
    harm_redis(ground, harm)?;
    let locked = ground.lock_away();
    ground.wipes.fetch_add(1, SeqCst);
    locked
}
