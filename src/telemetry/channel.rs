//! The runs that are followed: what is published on their status channels, and how loud they are to
//! be. A run is followed from the time it is first touched; of very many only the latest.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};
use tracing::debug;

use crate::nodb::caller;
use crate::store::{LockName, News, Store};
use crate::telemetry::Telemetry;
use crate::telemetry::event::{Event, Trigger};
use crate::telemetry::level::Level;

/// How many runs are followed at most: a day's runs of several hosts.
const MOST: usize = 1024;
/// How many events may wait to be published; more are not.
const QUEUE: usize = 4096;

/// The runs that are followed.
///
/// Lock order: `known` is taken alone and held across nothing that can wait.
#[derive(Debug)]
pub struct Runs {
    known: Mutex<LruCache<String, Run>>,
    changed: Condvar,
    store: OnceLock<Arc<dyn Store>>,
    /// Where nodbfs's own events go that are to be published.
    publisher: OnceLock<SyncSender<(String, String)>>,
}

#[derive(Debug, Default)]
struct Run {
    /// Whether its messages arrive.
    following: bool,
    level: Level,
}

impl Default for Runs {
    fn default() -> Self {
        Self {
            known: Mutex::new(LruCache::unbounded()),
            changed: Condvar::new(),
            store: OnceLock::new(),
            publisher: OnceLock::new(),
        }
    }
}

impl Runs {
    /// How loud an event of the run must be to be written.
    pub fn level(&self, runid: &str) -> Level {
        let known = self.known.lock();
        known.peek(runid).map_or(Level::default(), |run| run.level)
    }

    /// The run was touched: its channels are followed from now on. Waits for nothing.
    pub fn follow(&self, runid: &str) {
        let Some(store) = self.store.get() else {
            return;
        };
        let left = {
            let mut known = self.known.lock();
            if known.get(runid).is_some() {
                return;
            }
            known.put(runid.to_owned(), Run::default());
            match known.len() > MOST {
                true => known.pop_lru(),
                false => None,
            }
        };
        if let Some((left, _)) = left {
            store.unfollow(&left);
        }
        if store.follow(runid) {
            self.change(runid, |run| run.following = true);
        }
    }

    /// Waits until messages of a run that was touched arrive; `false`: they still do not.
    pub fn await_following(&self, runid: &str, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut known = self.known.lock();
        let mut over = false;
        loop {
            if known.peek(runid).is_some_and(|run| run.following) {
                return true;
            }
            if over {
                return false;
            }
            over = self.changed.wait_until(&mut known, until).timed_out();
        }
    }

    /// Publishes an event of nodbfs's own, some time soon, if that is wanted.
    pub fn publish(&self, of: &LockName, message: &str) {
        if let Some(publisher) = self.publisher.get() {
            let text = format!("{}{message}", own_sign());
            if publisher.try_send((of.channel(), text)).is_err() {
                debug!("too many events to publish: one is not");
            }
        }
    }

    /// `change` is made to a run that is followed; `false`: it is not followed.
    fn change(&self, runid: &str, change: impl FnOnce(&mut Run)) -> bool {
        let mut known = self.known.lock();
        let Some(run) = known.peek_mut(runid) else {
            return false;
        };
        change(run);
        self.changed.notify_all();
        true
    }
}

/// What the messages begin with that this daemon publishes of itself, so that they are not shown twice.
fn own_sign() -> String {
    format!("nodbfs[{}] ", caller::own_owner())
}

impl Telemetry {
    /// Follows the channels of `store`. With `publishes`, nodbfs's own commits and lock events are
    /// published on them.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn connect(
        self: &Arc<Self>,
        store: &Arc<dyn Store>,
        publishes: bool,
    ) -> std::io::Result<()> {
        let news: Arc<dyn News> = self.clone();
        store.listen(Arc::downgrade(&news));
        if publishes {
            let (publisher, queue) = sync_channel(QUEUE);
            let publishing = store.clone();
            thread::Builder::new()
                .name("nodbfs-publish".to_owned())
                .spawn(move || publish_all(&*publishing, queue))?;
            let _ = self.runs.publisher.set(publisher);
        }
        // a second store is nobody's intention
        let _ = self.runs.store.set(store.clone());
        Ok(())
    }
}

fn publish_all(store: &dyn Store, queue: Receiver<(String, String)>) {
    for (channel, text) in queue {
        if let Err(error) = store.publish(&channel, &text) {
            debug!(channel, %error, "an event was not published");
        }
    }
}

impl Telemetry {
    /// A message was published on a controller's channel.
    pub fn note_message(&self, of: &LockName, text: &str) {
        let channel = &of.channel();
        let event = match Trigger::of(text) {
            Some(trigger) => Event::Trigger {
                channel,
                trigger,
                text,
            },
            None => Event::Message { channel, text },
        };
        self.note(of, &event);
    }
}

impl News for Telemetry {
    fn message(&self, channel: &str, text: &str) {
        let runid = channel.rsplit_once(':').map_or("", |(runid, _)| runid);
        if self.runs.known.lock().peek(runid).is_none() || text.starts_with(&own_sign()) {
            return;
        }
        for name in self.journals.on_channel(channel) {
            self.note_message(&name, text);
        }
    }

    fn level(&self, runid: &str, value: Option<&str>) {
        let parsed = value.map(str::parse::<Level>).transpose();
        let level = parsed
            .as_ref()
            .map_or(Level::default(), |level| level.unwrap_or_default());
        let mut before = level;
        let set = |run: &mut Run| before = std::mem::replace(&mut run.level, level);
        if !self.runs.change(runid, set) {
            return;
        }
        let event = match (parsed, value) {
            (Err(_), Some(value)) => Event::LevelUnknown { value },
            _ if before == level => return,
            _ => Event::LevelSet { level },
        };
        for name in self.journals.of_run(runid) {
            self.note(&name, &event);
        }
    }

    fn following(&self, runid: &str, on: bool) {
        if !self.runs.change(runid, |run| run.following = on) {
            return;
        }
        for name in self.journals.of_run(runid) {
            let channel = &name.channel();
            self.note(&name, &Event::Following { channel, on });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;

    fn connected() -> (Arc<Telemetry>, Arc<dyn Store>) {
        let store: Arc<dyn Store> = Arc::new(Embedded::new(0));
        let telemetry = Arc::<Telemetry>::default();
        telemetry.connect(&store, true).unwrap();
        (telemetry, store)
    }

    fn name(relpath: &str) -> LockName {
        LockName {
            runid: "run".into(),
            relpath: relpath.into(),
        }
    }

    fn text(telemetry: &Telemetry, relpath: &str) -> String {
        let (bytes, _) = telemetry.journals.of(&name(relpath)).read(0, usize::MAX);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn messages_of_runs_that_were_touched_come_to_the_controllers_of_their_channel() {
        let (telemetry, store) = connected();
        store.publish("run:wepp", "too early").unwrap();
        telemetry.runs.follow("run");
        assert!(telemetry.runs.await_following("run", Duration::ZERO));
        assert!(!telemetry.runs.await_following("other", Duration::ZERO));
        let scenario = "_pups/omni/scenarios/low/wepp.nodb";
        telemetry.journals.of(&name(scenario));
        store.publish("run:wepp", "hello").unwrap();
        store
            .publish("run:omni", "rq:1 TRIGGER   omni ON_INIT_FINISH")
            .unwrap();
        store.publish("another:wepp", "not ours").unwrap();
        let wepp = text(&telemetry, "wepp.nodb");
        assert!(
            wepp.ends_with("message channel=run:wepp text=hello\n"),
            "{wepp}"
        );
        assert_eq!(wepp.lines().count(), 1, "{wepp}");
        for omni in ["omni.nodb", scenario] {
            let omni = text(&telemetry, omni);
            assert!(
                omni.contains("trigger event=ON_INIT_FINISH controller=omni job=1"),
                "{omni}"
            );
        }
    }

    /// However soon messages arrive: here before anything else is known of the controller.
    #[test]
    fn whoever_touches_a_run_first_is_told_that_it_is_followed() {
        let (telemetry, _store) = connected();
        telemetry.touch(&name("wepp.nodb"));
        telemetry.following("run", true);
        let wepp = text(&telemetry, "wepp.nodb");
        assert!(wepp.contains("following the status channel"), "{wepp}");
    }

    #[test]
    fn the_level_of_a_run_decides_what_is_written() {
        let (telemetry, store) = connected();
        telemetry.runs.follow("run");
        let name = name("wepp.nodb");
        let note = |size| telemetry.note(&name, &Event::Changed { size });
        note(1);
        store.set_level("run", Some("30")).unwrap();
        note(2);
        store.set_level("run", Some("loud")).unwrap();
        note(3);
        store.set_level("run", None).unwrap();
        note(4);
        let all = text(&telemetry, "wepp.nodb");
        for (words, there) in [
            ("size=1", true),
            ("log level level=WARNING", true),
            ("size=2", false),
            ("log level ignored: it is none value=loud", true),
            ("size=3", true),
            ("size=4", true),
        ] {
            assert_eq!(all.contains(words), there, "{words}: {all}");
        }
    }
}
