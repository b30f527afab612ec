//! Status channels and log levels, as real publishers and NoDb processes use them.

use std::fs;
use std::time::Duration;

use super::common::mount::Mount;
use super::common::redis::RedisServer;
use super::common::run::{Kind, RUNID, Run, eventually};
use super::{await_followed, await_line, lines, log, publish, save, text};

#[test]
fn messages_show_in_the_log_of_their_controller() {
    let run = Run::new(Kind::Redis);
    await_followed(&run, "wepp");
    publish(&run, "wepp", "running \"hillslope\" 7=ok");
    await_line(&run, "wepp", "text=running \"hillslope\" 7=ok\n");
    // of a controller that nobody has touched yet, too
    publish(
        &run,
        "climate",
        "rq:5f-1 TRIGGER   climate CLIMATE_BUILD_COMPLETE",
    );
    await_line(
        &run,
        "climate",
        "trigger event=CLIMATE_BUILD_COMPLETE controller=climate job=5f-1",
    );
    publish(&run, "soils", "two\nlines \u{1b}[31mred");
    await_line(&run, "soils", r"text=two\nlines \u{1b}[31mred");
    for name in ["wepp", "climate", "soils"] {
        let log = log(&run, name);
        assert_eq!(lines(&log, "text=").len(), 1, "{log}");
    }
}

#[test]
fn a_child_runs_messages_come_over_the_omni_channel() {
    let source = tempfile::tempdir().unwrap();
    let child = source.path().join("_pups/omni/scenarios/low");
    fs::create_dir_all(&child).unwrap();
    let known_as = "/wc1/runs/gl/a*b?c[d]";
    let document = format!("{{\"_parent_wd\": \"{known_as}\"}}");
    fs::write(child.join("wepp.nodb"), &document).unwrap();
    fs::write(source.path().join("wepp.nodb"), "{}").unwrap();
    let redis = RedisServer::start();
    let mount = Mount::builder(source.path())
        .redis(&redis.unix_url())
        .args(["--key-root", known_as])
        .start();
    let [child, parent] =
        ["_pups/omni/scenarios/low", ""].map(|dir| mount.path().join(dir).join("wepp.nodb.log"));
    eventually("the child is followed", || {
        text(&child).contains("following")
    });
    for (channel, message) in [
        ("a*b?c[d]:omni", "to the child"),
        ("a*b?c[d]:wepp", "to the parent"),
        // what the name means as a pattern
        ("axbycd:wepp", "to another run"),
        ("a*b?c[d]:wepp", "the last"),
    ] {
        redis.cmd(&["PUBLISH", channel, message]);
    }
    eventually("messages arrive", || text(&parent).contains("the last"));
    assert!(text(&child).contains("channel=a*b?c[d]:omni text=to the child"));
    assert!(text(&parent).contains("text=to the parent"));
    for (log, not) in [
        (&child, "parent"),
        (&parent, "child"),
        (&parent, "another run"),
    ] {
        assert!(!text(log).contains(not), "{}", text(log));
    }
}

#[test]
fn a_run_that_was_only_looked_at_is_not_followed() {
    let run = Run::new(Kind::Redis);
    for name in super::common::run::listing(run.mount.path()) {
        fs::symlink_metadata(run.at(&name)).unwrap();
    }
    fs::read(run.at("nodb.version")).unwrap();
    let patterns: u64 = ::redis::from_redis_value(run.redis().cmd(&["PUBSUB", "NUMPAT"])).unwrap();
    assert_eq!(patterns, 0);
    await_followed(&run, "wepp");
    let patterns: u64 = ::redis::from_redis_value(run.redis().cmd(&["PUBSUB", "NUMPAT"])).unwrap();
    assert_eq!(patterns, 1, "for all its controllers");
}

#[test]
fn messages_arrive_again_after_an_outage() {
    let mut run = Run::new(Kind::Redis);
    await_followed(&run, "wepp");
    run.redis_mut().restart();
    let mut n = 0;
    eventually("a message arrives", || {
        n += 1;
        publish(&run, "wepp", &format!("message {n}"));
        log(&run, "wepp").contains("text=message")
    });
    assert!(log(&run, "wepp").contains("status channel lost"));
}

#[test]
fn the_level_of_a_run_is_followed() {
    let run = Run::new(Kind::Redis);
    await_followed(&run, "wepp");
    let level = format!("loglevel:{RUNID}");
    let set = |value: &str| run.redis().cmd_in(15, &["SET", &level, value]);
    let count = |words| lines(&log(&run, "wepp"), words).len();
    set("30");
    await_line(&run, "wepp", "log level level=WARNING");
    save(&run, "wepp", 1);
    assert_eq!(count("committed"), 0);
    publish(&run, "wepp", "others say what they say");
    await_line(&run, "wepp", "others say what they say");
    set("debug");
    await_line(&run, "wepp", "log level level=DEBUG");
    fs::remove_file(run.at("wepp.nodb")).unwrap();
    save(&run, "wepp", 2);
    assert_eq!(count("committed"), 1);
    assert!(count("[DEBUG]") > 0, "{}", log(&run, "wepp"));
    set("loud");
    await_line(&run, "wepp", "log level ignored: it is none value=loud");
    save(&run, "wepp", 3);
    assert_eq!(count("committed"), 2);
    set("40");
    await_line(&run, "wepp", "log level level=ERROR");
    run.redis().cmd_in(15, &["DEL", &level]);
    await_line(&run, "wepp", "log level level=INFO");
}

#[test]
fn events_are_published_when_that_is_wanted_and_not_shown_twice() {
    for (args, wanted) in [(&["--publish-events"][..], true), (&[], false)] {
        let run = Run::with_args(Kind::Redis, args);
        let mut listener = run.redis().connect(0).unwrap();
        let mut listener = listener.as_pubsub();
        listener.subscribe(format!("{RUNID}:wepp")).unwrap();
        listener
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        await_followed(&run, "wepp");
        save(&run, "wepp", 1);
        publish(&run, "wepp", "the last");
        let mut texts = Vec::new();
        // an event is published by another thread, so it may come behind
        while wanted
            && !texts
                .iter()
                .any(|text: &String| text.contains("lock released"))
            || !texts.contains(&"the last".to_owned())
        {
            texts.push(listener.get_message().unwrap().get_payload().unwrap());
        }
        let committed = |text: &&String| text.contains("committed generation=");
        let published: Vec<_> = texts.iter().filter(committed).collect();
        assert_eq!(published.len(), usize::from(wanted), "{texts:?}");
        assert!(published.iter().all(|text| text.starts_with("nodbfs[")));
        await_line(&run, "wepp", "text=the last");
        assert_eq!(lines(&log(&run, "wepp"), "committed").len(), 1);
    }
}
