//! Where the virtual logs are, and where they are not.

use std::fs;
use std::process::Command;

use super::common::mount::Mount;
use super::common::run::{BOTH, Kind, listing};
use super::{await_followed, log, run_without_log, save, text};

#[test]
fn where_there_is_no_real_log_the_virtual_one_stands_for_it() {
    for kind in BOTH {
        let run = run_without_log(kind);
        // or that would be told between the looks at the log
        await_followed(&run, "wepp");
        save(&run, "wepp", 1);
        let stand_in = text(&run.at("wepp.log"));
        assert!(stand_in.contains("committed"), "{stand_in}");
        assert_eq!(stand_in, log(&run, "wepp"));
        for (script, content) in [
            ("echo made > wepp.log", "made\n"),
            (
                "echo appended >> wepp.log; echo again >> wepp.log",
                "appended\nagain\n",
            ),
            ("touch wepp.log", ""),
            ("echo x > other; mv other wepp.log", "x\n"),
            ("echo y > other; cp other wepp.log; rm other", "y\n"),
            (
                "echo z > other; ln -f other wepp.log 2> /dev/null || mv other wepp.log; rm -f other",
                "z\n",
            ),
            (
                "python3 -c 'import logging; logging.FileHandler(\"wepp.log\").stream.write(\"p\")'",
                "p",
            ),
        ] {
            let made = run.shell(script, &[]);
            assert!(made.status.success(), "{script}: {made:?}");
            assert_eq!(text(&run.on_disk("wepp.log")), content, "{script}");
            assert_eq!(text(&run.at("wepp.log")), content, "{script}");
            // whoever writes the real one is passed through
            fs::remove_file(run.at("wepp.log")).unwrap();
            assert!(text(&run.at("wepp.log")).contains("committed"), "{script}");
        }
        let mode = "umask 027; > wepp.log; stat -c %a wepp.log; rm wepp.log";
        assert_eq!(run.shell(mode, &[]).stdout, b"640\n");
        // nothing is there that could be removed, moved or changed
        for script in [
            "rm wepp.log",
            "mv wepp.log other",
            "python3 -c 'import os; os.truncate(\"wepp.log\", 0)'",
            "chmod 600 wepp.log",
        ] {
            let done = run.shell(script, &[]);
            assert!(!done.status.success(), "{script}");
            assert!(
                String::from_utf8_lossy(&done.stderr).contains("No such file"),
                "{script}: {done:?}"
            );
        }
    }
}

#[test]
fn a_log_needs_a_controller_and_a_real_file_wins() {
    let run = run_without_log(Kind::Embedded);
    fs::create_dir(run.on_disk("dir.nodb")).unwrap();
    std::os::unix::fs::symlink("wepp.nodb", run.on_disk("link.nodb")).unwrap();
    for name in [
        "nothing.nodb.log",
        "nothing.log",
        "dir.nodb.log",
        "link.log",
        ".log",
        ".nodb.log",
        "wepp.nodb.log.log",
    ] {
        assert!(!run.at(name).exists(), "{name}");
    }
    fs::write(run.on_disk("wepp.nodb.log"), "real").unwrap();
    assert_eq!(log(&run, "wepp"), "real");
    fs::remove_file(run.at("wepp.nodb.log")).unwrap();
    fs::write(run.on_disk("wepp.log"), "real").unwrap();
    assert_eq!(text(&run.at("wepp.log")), "real");
    fs::write(run.at("nothing.log"), "plain").unwrap();
    assert_eq!(text(&run.on_disk("nothing.log")), "plain");
}

#[test]
fn nothing_virtual_shows_in_listings_copies_and_archives() {
    let run = run_without_log(Kind::Redis);
    let open: Vec<_> = ["wepp.nodb.log", "wepp.log", "soils.nodb.log"]
        .iter()
        .map(|name| fs::File::open(run.at(name)).unwrap())
        .collect();
    save(&run, "wepp", 1);
    // the replaced file is removed behind the writer's back
    super::eventually("nothing is left behind", || {
        let left = |name: &String| name.starts_with(".nodbfs");
        !listing(run.source()).iter().any(left)
    });
    assert_eq!(listing(run.mount.path()), listing(run.source()));
    let scratch = tempfile::tempdir().unwrap();
    let say = |script: &str, dir: &std::path::Path| {
        let output = Command::new("sh")
            .args(["-ec", script])
            .current_dir(dir)
            .env("OUT", scratch.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        output.stdout
    };
    for script in [
        "ls -aR .",
        "find . | sort",
        "find . -name '*.log' | sort",
        "tar -c --sort=name . | tar -t",
        "du -a --apparent-size . | sort",
        "echo *.log; echo *.nodb*",
    ] {
        let (mounted, source) = (say(script, run.mount.path()), say(script, run.source()));
        assert!(mounted == source, "{script}");
    }
    say("rsync -a . $OUT/copy", run.mount.path());
    say("diff -r . $OUT/copy", run.source());
    drop(open);
}

#[test]
fn names_of_logs_are_looked_up_without_the_store() {
    let run = run_without_log(Kind::Redis);
    for n in 0..200 {
        fs::write(run.on_disk(&format!("plain-{n}.log")), "x").unwrap();
    }
    run.redis().cmd(&["CONFIG", "RESETSTAT"]);
    for n in 0..200 {
        assert!(run.at(&format!("plain-{n}.log")).exists());
        assert!(!run.at(&format!("missing-{n}.log")).exists());
    }
    let stats = run.redis().text(&["INFO", "commandstats"]).unwrap();
    for line in stats.lines().filter(|line| line.starts_with("cmdstat_")) {
        assert!(
            [
                "cmdstat_info",
                "cmdstat_config",
                "cmdstat_select",
                "cmdstat_client"
            ]
            .iter()
            .any(|own| line.starts_with(own)),
            "{line}"
        );
    }
}

#[test]
fn on_a_mount_over_its_own_source_the_logs_are_there_too() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("wepp.nodb"), "{}").unwrap();
    let mount = Mount::builder(source.path())
        .mountpoint(source.path())
        .start();
    fs::write(mount.path().join("wepp.nodb"), "{\"_n\": 1}").unwrap();
    assert!(text(&mount.path().join("wepp.log")).contains("committed"));
    assert_eq!(listing(mount.path()), ["wepp.nodb"]);
}
