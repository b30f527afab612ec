//! The matrix of writers: programs that know nothing of NoDb change a controller through the mount,
//! and then disk, cache, lock and mirror are what PROTOCOL.md wants (promises 3, 4, 5, 7 and 10).

mod common;

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use common::run::{Kind, RUNID, Run};
use common::sample::Layout;
use rustix::fs::{XattrFlags, getxattr, setxattr};

const NAME: &str = "wepp.nodb";

/// Runs `script` in the mounted run, where it has to set `_counter` of `$F` to 7. `$NEW` is a file
/// elsewhere that holds the changed document, `$CODE` turns a document into the changed one.
fn write_with(script: &str) {
    for (kind, layout) in [
        (Kind::Embedded, Layout::Modern),
        (Kind::Redis, Layout::Old),
        (Kind::Redis, Layout::Modern),
    ] {
        let run = Run::with(kind, layout, &[]);
        let disk = run.on_disk(NAME);
        let scratch = tempfile::tempdir().unwrap();
        let new = scratch.path().join("new.nodb");
        let text = fs::read_to_string(&disk).unwrap();
        let changed = text.replace("\"_counter\": 0", "\"_counter\": 7");
        assert_ne!(text, changed);
        fs::write(&new, &changed).unwrap();
        // what must survive, and a time that must not
        for path in [&disk, &new] {
            fs::set_permissions(path, Permissions::from_mode(0o640)).unwrap();
            if rustix::process::geteuid().is_root() {
                chown(path, Some(1234), Some(4321)).unwrap();
            }
        }
        setxattr(&disk, "user.note", b"kept", XattrFlags::empty()).unwrap();
        let long_ago =
            FileTimes::new().set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000));
        File::open(&new).unwrap().set_times(long_ago).unwrap();
        let before = fs::metadata(&disk).unwrap();
        // most writers look before they write
        fs::read(run.at(NAME)).unwrap();

        let env = [("F", Path::new(NAME)), ("NEW", &new)];
        let output = run.shell(script, &env);
        assert!(output.status.success(), "{kind:?} {layout:?} {output:?}");

        let document: serde_json::Value =
            serde_json::from_slice(&fs::read(&disk).unwrap()).unwrap();
        let state = document.get("py/state").unwrap_or(&document);
        assert_eq!(state["_counter"], 7, "{kind:?} {layout:?}");
        let after = fs::metadata(&disk).unwrap();
        assert!(nanos(&after) > nanos(&before) + 1_000, "{after:?}");
        assert_eq!(
            (after.mode(), after.uid(), after.gid()),
            (before.mode(), before.uid(), before.gid())
        );
        let mut note = [0; 16];
        let size = getxattr(&disk, "user.note", &mut note).expect("the attribute");
        assert_eq!(&note[..size], b"kept");
        run.assert_settled(NAME);
        if kind == Kind::Redis {
            assert_eq!(run.mirror(NAME).as_deref(), Some("false"));
            let modified = run.redis().text(&["HGET", RUNID, "last_modified"]);
            let modified: i64 = modified.expect("last_modified").parse().unwrap();
            assert!((modified - after.mtime()).abs() < 60, "{modified}");
        }
        assert!(run.rejected().is_empty());
    }
}

fn nanos(stat: &fs::Metadata) -> i64 {
    stat.mtime() * 1_000_000_000 + stat.mtime_nsec()
}

macro_rules! writers {
    ($($name:ident: $script:expr;)*) => {
        $(#[test]
        fn $name() {
            write_with($script);
        })*
    };
}

writers! {
    python_open_w: r#"python3 -c '
import json
doc = json.load(open("wepp.nodb"))
doc.get("py/state", doc)["_counter"] = 7
with open("wepp.nodb", "w") as file:
    json.dump(doc, file)
'"#;
    python_open_r_plus: r#"python3 -c '
import json
with open("wepp.nodb", "r+") as file:
    doc = json.load(file)
    doc.get("py/state", doc)["_counter"] = 7
    file.seek(0)
    json.dump(doc, file)
    file.truncate()
'"#;
    python_truncates_then_writes: r#"python3 -c '
import os
new = open(os.environ["NEW"]).read()
with open("wepp.nodb", "r+") as file:
    file.truncate(0)
    file.write(new)
    file.flush()
    os.fsync(file.fileno())
'"#;
    python_changes_a_byte_in_place: r#"python3 -c '
import os
fd = os.open("wepp.nodb", os.O_RDWR)
text = os.read(fd, 1 << 20)
os.pwrite(fd, b"7", text.index(b"\"_counter\": 0") + len("\"_counter\": "))
os.close(fd)
'"#;
    python_appends: r#"cat "$NEW" > "$F"; python3 -c '
with open("wepp.nodb", "a") as file:
    file.write("\n")
'"#;
    python_replaces: r#"python3 -c '
import os
with open("wepp.nodb.tmp", "w") as file:
    file.write(open(os.environ["NEW"]).read())
    file.flush()
    os.fsync(file.fileno())
os.replace("wepp.nodb.tmp", "wepp.nodb")
'"#;
    shell_redirects: r#"cat "$NEW" > "$F""#;
    shell_echoes: r#"text=$(cat "$NEW"); printf '%s\n' "$text" > "$F""#;
    sed_in_place: r#"sed -i 's/"_counter": 0/"_counter": 7/' "$F""#;
    perl_in_place: r#"perl -pi -e 's/"_counter": 0/"_counter": 7/' "$F""#;
    jq_then_mv: r#"jq -c '(if has("py/state") then ."py/state" else . end)._counter = 7' "$F" > t && mv t "$F""#;
    jq_then_cat: r#"t=$(jq -c '(if has("py/state") then ."py/state" else . end)._counter = 7' "$F"); printf %s "$t" > "$F""#;
    cp: r#"cp "$NEW" "$F""#;
    cp_preserving: r#"cp -p "$NEW" "$F""#;
    mv_from_another_directory: r#"mkdir d; cp "$NEW" d/x; mv d/x "$F"; rmdir d"#;
    cp_then_mv: r#"cp "$NEW" t; mv -f t "$F""#;
    rsync: r#"rsync "$NEW" "$F""#;
    rsync_archive: r#"rsync -a --ignore-times "$NEW" "$F""#;
    rsync_in_place: r#"rsync --inplace --ignore-times "$NEW" "$F""#;
    vim_writes: r#"vim -u NONE -es -c '%s/"_counter": 0/"_counter": 7/' -c wq "$F""#;
    vim_renames_its_backup: r#"vim -u NONE -es -c 'set backup backupcopy=no nobackup writebackup' -c '%s/"_counter": 0/"_counter": 7/' -c wq "$F""#;
    vim_copies_its_backup: r#"vim -u NONE -es -c 'set backupcopy=yes' -c '%s/"_counter": 0/"_counter": 7/' -c wq "$F""#;
    dd_with_fsync: r#"dd if="$NEW" of="$F" bs=1000 conv=fsync"#;
    dd_without_truncation: r#"dd if="$NEW" of="$F" bs=1000 conv=notrunc"#;
    tee: r#"tee "$F" < "$NEW" > /dev/null"#;
    awk_then_mv: r#"awk '{ sub(/"_counter": 0/, "\"_counter\": 7"); print }' "$F" > t && mv t "$F""#;
}
