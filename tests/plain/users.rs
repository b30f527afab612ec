//! Other users on a mount of root's: what they make is theirs, and what the source would refuse
//! them is refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use crate::common::twins::Twins;

const LIST: &str = "find . -mindepth 1 -printf '%P %y %m %U:%G %s\\n' 2>&1 | sort";

/// Twins that everybody may write to; `None`: only root can be somebody else.
fn for_all() -> Option<Twins> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("needs root");
        return None;
    }
    let twins = Twins::new(["--allow-other", "-o", "suid"]);
    for dir in [twins.mounted(), &twins.plain()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    Some(twins)
}

#[test]
fn what_somebody_makes_is_theirs() {
    let Some(twins) = for_all() else { return };
    twins.script_as(
        1000,
        1001,
        "",
        "umask 022; echo >f; mkdir d; mkfifo p; ln -s f l; : >d/e; mkdir -p d/deep/er; umask 077; echo >private
        python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'",
    );
    let said = twins.script(LIST);
    assert!(said.contains("f f 644 1000:1001 1"), "{said}");
}

#[test]
fn what_is_not_allowed_is_refused() {
    let Some(twins) = for_all() else { return };
    twins.script(
        "umask 022; echo secret >private; chmod 600 private; echo >public; mkdir closed listed passed
        echo >closed/f; echo >listed/f; echo >passed/f; chmod 700 closed; chmod 744 listed; chmod 711 passed
        mkdir ours; chown 1000 ours; echo >ours/roots; mkdir sticky; chmod 1777 sticky; echo >sticky/roots; echo >exec; chmod 754 exec
        echo >readers; chown 0:77 readers; chmod 640 readers",
    );
    for (uid, gid, groups) in [
        (1000, 1000, ""),
        (1001, 77, ""),
        (1001, 1001, "77"),
        (0, 0, ""),
    ] {
        twins.script_as(
            uid,
            gid,
            groups,
            "exec 2>&1; cat private; echo >>private; echo >>public; ls closed; cat closed/f; ls listed; cat listed/f
            ls passed; cat passed/f; echo >passed/new; rm passed/f; mv passed/f passed/g; ln passed/f ours/linked
            touch public; touch -d @5 public; chmod 777 public; chown 1000 public; chgrp 77 public
            truncate -s 9 public; mknod dev c 1 3; setfattr -n user.x -v 1 public; setfattr -n trusted.x -v 1 public
            setfattr -n security.x -v 1 public; getfattr -n user.none private; mkdir ours/d; rmdir ours/d; rm -f ours/roots
            rm -f sticky/roots; mv sticky/roots sticky/other; : >sticky/own; mv sticky/own sticky/roots; rm sticky/own
            cat readers; echo >>readers; ./exec; test -r private; echo $?; test -w public; echo $?; test -x exec; echo $?
            cd closed; cd passed && cat f; setfacl -m u:5:r public",
        );
        twins.script(LIST);
    }
}

#[test]
fn supplementary_groups_count() {
    let Some(twins) = for_all() else { return };
    twins.script("mkdir team; chown 0:500 team; chmod 770 team; echo x >team/f; chmod 660 team/f; chown 0:500 team/f");
    for groups in ["400,500,600", "400"] {
        twins.script_as(
            1000,
            1000,
            groups,
            "exec 2>&1; cat team/f; echo more >>team/f; echo >team/new; mkdir team/dir; ln -s f team/link; mkfifo team/p
            : >own; chgrp 500 own; chgrp 700 own; stat -c %g own; rm own",
        );
    }
    twins.script(LIST);
}

#[test]
fn directories_that_pass_their_group_on() {
    let Some(twins) = for_all() else { return };
    twins.script("mkdir shared; chown 0:500 shared; chmod 2777 shared");
    twins.script_as(
        1000,
        1000,
        "",
        "exec 2>&1; umask 002; echo >shared/f; mkdir shared/d; echo >shared/d/g; chmod 2755 shared/f; touch shared/h; chmod 2755 shared/d
        python3 -c 'import os; os.close(os.open(\"shared/s\", os.O_CREAT | os.O_WRONLY, 0o2775))'",
    );
    twins.script_as(
        1000,
        1000,
        "500",
        "exec 2>&1; echo >shared/i; chmod 2755 shared/i; chmod 2755 shared/f",
    );
    twins.script(LIST);
}

/// Whoever but root changes a file takes its set-uid bits away.
#[test]
fn a_changed_file_is_set_uid_no_more() {
    let Some(twins) = for_all() else { return };
    for change in [
        "echo >>f",
        "echo >f",
        "truncate -s 3 f",
        "truncate -s 300 f",
        "fallocate -l 4096 f",
        "fallocate -p -o 0 -l 2 f",
        "dd if=/dev/zero of=f bs=4096 count=1 oflag=direct conv=notrunc status=none",
        "cp g f",
        "python3 -c 'import os; os.copy_file_range(os.open(\"g\", 0), os.open(\"f\", 1), 2)'",
        "python3 -c 'import mmap; mmap.mmap(open(\"f\", \"r+b\").fileno(), 0)[0] = 0'",
        "chown 1000 f",
        "chgrp 500 f",
        "touch f",
        "cat f",
        "setfattr -n user.x -v 1 f",
        "setfacl -m u:1000:r f",
    ] {
        // only members of the group keep a set-gid bit that stands without the right to execute
        for (mode, uid, group) in [
            ("6777", 1000, 1000),
            ("2767", 1000, 1000),
            ("2766", 1000, 500),
            ("2766", 1000, 3000),
            ("2766", 2000, 3000),
            ("6777", 0, 1000),
            ("6777", 2000, 1000),
            ("2767", 1002, 1000),
        ] {
            twins.script(&format!("rm -f f; echo content >f; echo other >g; chown 2000:{group} f; chmod {mode} f; chmod 666 g"));
            twins.script_as(
                uid,
                1000,
                "500",
                &format!("exec 2>&1; {change}; stat -c '%a %u:%g' f"),
            );
        }
    }
}

#[test]
fn access_control_lists_count() {
    let Some(twins) = for_all() else { return };
    twins.script(
        "echo secret >f; chmod 600 f; setfacl -m u:1000:r f; mkdir d; chmod 700 d; setfacl -m u:1000:rwx -d -m u:1001:rw,g:500:r d
        echo >nobody; chmod 666 nobody; setfacl -m u:1000:- nobody",
    );
    for uid in [1000, 1001] {
        twins.script_as(
            uid,
            uid,
            "",
            "exec 2>&1; umask 077; cat f; echo >>f; cat nobody; echo >d/new$(id -u); mkdir d/sub; ls d; setfacl -m u:1001:r f; chmod 777 f",
        );
    }
    twins.script("getfacl -R -n .; find . -printf '%P %m %U:%G\\n' | sort");
}

/// `chattr +i` and `+a` are set beneath, and hold above.
#[test]
fn immutable_and_append_only_files() {
    let Some(twins) = for_all() else { return };
    let dirs = [twins.source(), twins.plain()];
    let chattr = |how: &str, name: &str| {
        dirs.iter().all(|dir| {
            let status = std::process::Command::new("chattr")
                .arg(how)
                .arg(dir.join(name))
                .status();
            status.is_ok_and(|status| status.success())
        })
    };
    twins.script("echo x >fixed; echo x >log; mkdir frozen; echo >frozen/f");
    if chattr("+i", "fixed") && chattr("+a", "log") && chattr("+i", "frozen") {
        twins.script(
            "exec 2>&1; echo >>fixed; rm -f fixed; mv fixed g; chmod 777 fixed; touch fixed; ln fixed h; truncate -s 0 fixed
            echo more >>log; echo >log; truncate -s 0 log; rm -f log; dd if=/dev/zero of=log bs=1 count=1 conv=notrunc
            echo >frozen/new; rm -f frozen/f; mkdir frozen/d; echo >>frozen/f; rmdir frozen; cat log fixed; setfattr -n user.x -v 1 fixed",
        );
    }
    for name in ["fixed", "log", "frozen"] {
        chattr("-ia", name);
    }
}

#[test]
fn other_users_stay_out_of_a_private_mount() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("needs root");
        return;
    }
    let twins = Twins::new([]);
    fs::write(twins.mounted().join("file"), "").unwrap();
    chown(twins.mounted().join("file"), Some(1000), None).unwrap();
    let status = std::process::Command::new("setpriv")
        .args(["--reuid=1000", "--regid=1000", "--clear-groups", "cat"])
        .arg(twins.mounted().join("file"))
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
}
