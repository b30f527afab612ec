use super::*;

/// The identity of `file` with the given JSON members in its state object.
fn identify(file: &str, members: &str) -> Identity {
    let (dir, name) = file.rsplit_once('/').unwrap();
    let old = format!(r#"{{"py/object": "x", {members} "z": 1}}"#);
    let modern = format!(r#"{{"py/object": "x", "py/state": {{{members} "z": 1}}}}"#);
    let [old, modern] = [old, modern].map(|text| {
        let document = Document::parse(text.as_bytes()).unwrap();
        Identity::of(Some(&document), Path::new(dir), name)
    });
    assert_eq!(old, modern);
    old
}

fn assert_names(identity: &Identity, runid: &str, relpath: &str, channel: &str) {
    assert_eq!(
        (&*identity.runid, &*identity.relpath, &*identity.channel),
        (runid, relpath, channel)
    );
}

/// Every row of the table in PROTOCOL.md 3.
#[test]
fn the_protocols_table() {
    let scenario = "/wc1/runs/ve/ventilated-gag/_pups/omni/scenarios/uniform_low";
    for (file, members, runid, relpath, channel) in [
        (
            "/wc1/runs/me/mercuric-subcontract/wepp.nodb",
            "",
            "mercuric-subcontract",
            "wepp.nodb",
            "mercuric-subcontract:wepp",
        ),
        (
            &format!("{scenario}/disturbed.nodb"),
            r#""_parent_wd": "/wc1/runs/ve/ventilated-gag","#,
            "ventilated-gag",
            "_pups/omni/scenarios/uniform_low/disturbed.nodb",
            "ventilated-gag:omni",
        ),
        (
            // A symlink to the parent's, so the document names no parent: the parent's lock.
            &format!("{scenario}/climate.nodb"),
            "",
            "ventilated-gag",
            "climate.nodb",
            "ventilated-gag:climate",
        ),
        (
            "/wc1/batch/spring/runs/run-001/wepp.nodb",
            r#""_run_group": "batch", "_group_name": "spring","#,
            "batch;;spring;;run-001",
            "wepp.nodb",
            "batch;;spring;;run-001:wepp",
        ),
        (
            "/wc1/batch/spring/batch_runner.nodb",
            "",
            "spring",
            "batch_runner.nodb",
            "spring:batch_runner",
        ),
        (
            "/wc1/culverts/U/runs/12/watershed.nodb",
            r#""_run_group": "culvert", "_group_name": "U","#,
            "culvert;;U;;12",
            "watershed.nodb",
            "culvert;;U;;12:watershed",
        ),
        (
            "/wc1/runs/ab/abc/omni/scenarios/x/wepp.nodb",
            r#""_parent_wd": "/wc1/runs/ab/abc","#,
            "abc",
            "omni/scenarios/x/wepp.nodb",
            "abc:wepp",
        ),
        (
            "/geodata/wc1/runs/me/mercuric-subcontract/wepp.nodb",
            "",
            "mercuric-subcontract",
            "wepp.nodb",
            "mercuric-subcontract:wepp",
        ),
        (
            // The legacy layout of section 1.
            "/geodata/weppcloud_runs/old-run/ron.nodb",
            "",
            "old-run",
            "ron.nodb",
            "old-run:ron",
        ),
    ] {
        let identity = identify(file, members);
        assert_names(&identity, runid, relpath, channel);
        assert_eq!(identity.note, None, "{file}");
    }
}

/// The shape of a real run of the old layout: state at the top level, a relative `wd`, no identity.
#[test]
fn a_real_runs_controllers_are_identified_by_path() {
    for controller in [
        "ash",
        "ashpost",
        "climate",
        "debris_flow",
        "disturbed",
        "landuse",
        "observed",
        "prep",
        "ron",
        "topaz",
        "unitizer",
        "wepp",
    ] {
        let text = format!(
            r#"{{"py/object": "wepppy.nodb.{controller}.X", "wd": "Test_Watershed_15", "_config": "disturbed.cfg", "_mods": ["disturbed", "ash"], "_center0": "[40.0, -99.0]", "_mode": {{"py/reduce": [{{"py/type": "x.Mode"}}, {{"py/tuple": [0]}}]}}, "meta": null}}"#
        );
        let document = Document::parse(text.as_bytes()).unwrap();
        let file = format!("{controller}.nodb");
        let identity = Identity::of(Some(&document), Path::new("/wc1/runs/ta/tahoma-run"), &file);
        assert_names(
            &identity,
            "tahoma-run",
            &file,
            &format!("tahoma-run:{controller}"),
        );
        assert_eq!(identity.note, None);
    }
}

#[test]
fn a_group_and_a_parent_combine() {
    let identity = identify(
        "/wc1/batch/spring/runs/run-001/_pups/omni/contrasts/3/wepp.nodb",
        r#""_parent_wd": "/wc1/batch/spring/runs/run-001", "_run_group": "batch", "_group_name": "spring","#,
    );
    let runid = "batch;;spring;;run-001";
    assert_names(
        &identity,
        runid,
        "_pups/omni/contrasts/3/wepp.nodb",
        &format!("{runid}:omni"),
    );
}

#[test]
fn without_a_document_the_path_decides() {
    let child = Path::new("/wc1/runs/ab/abc/_pups/omni/scenarios/x");
    let identity = Identity::of(None, child, "wepp.nodb");
    assert_names(&identity, "abc", "wepp.nodb", "abc:wepp");
    assert_eq!(identity.note, None);
    let root = Identity::of(None, Path::new("/"), "wepp.nodb");
    assert_names(&root, "", "wepp.nodb", ":wepp");
    let odd = Identity::of(None, Path::new("/_pups/x/_pups/y"), "w");
    assert_names(&odd, "x", "w", "x:w");
}

#[test]
fn the_parent_is_compared_as_abspath_writes_it() {
    for parent_wd in ["/r/abc/", "//r//abc/.", "/r/x/../abc"] {
        let members = format!(r#""_parent_wd": "{parent_wd}","#);
        let child = identify("/r/./abc//kid/wepp.nodb", &members);
        assert_names(&child, "abc", "kid/wepp.nodb", "abc:wepp");
        assert_eq!(child.note, None);
        // The parent itself does not lie strictly below itself.
        let parent = identify("/r/abc/wepp.nodb", &members);
        assert_names(&parent, "abc", "wepp.nodb", "abc:wepp");
        assert_eq!(parent.note, None);
    }
}

#[test]
fn a_broken_identity_falls_back_to_the_path_and_says_so() {
    for (members, note) in [
        (
            r#""_parent_wd": 7,"#,
            "_parent_wd is not a string: taken as not set",
        ),
        (
            r#""_parent_wd": "","#,
            "_parent_wd is empty: taken as not set",
        ),
        (
            r#""_parent_wd": "runs/abc","#,
            "_parent_wd \"runs/abc\" is relative: the path decides",
        ),
        (
            r#""_parent_wd": "/..","#,
            "_parent_wd \"/..\" names no run: the path decides",
        ),
        (
            r#""_run_group": {}, "_group_name": "g","#,
            "_run_group is not a string: taken as not set",
        ),
        (
            r#""_run_group": "batch","#,
            "_run_group \"batch\" comes without a _group_name: no group in the runid",
        ),
        (
            r#""_run_group": "batch", "_group_name": false,"#,
            "_group_name is not a string: taken as not set; \
             _run_group \"batch\" comes without a _group_name: no group in the runid",
        ),
    ] {
        let identity = identify("/r/abc/_pups/x/wepp.nodb", members);
        assert_names(&identity, "abc", "wepp.nodb", "abc:wepp");
        assert_eq!(identity.note.as_deref(), Some(note));
    }
}

/// A name that merely begins like the parent's is not below it.
#[test]
fn a_parent_elsewhere_still_names_the_run() {
    for dir in ["/r/abcd", "/elsewhere/abc/_pups/omni/scenarios/x"] {
        let identity = identify(&format!("{dir}/wepp.nodb"), r#""_parent_wd": "/r/abc","#);
        assert_names(&identity, "abc", "wepp.nodb", "abc:wepp");
        let note = format!(
            "the directory {dir:?} does not lie below _parent_wd \"/r/abc\": \
             relpath is the file name alone"
        );
        assert_eq!(identity.note, Some(note));
    }
}

#[test]
fn a_path_that_is_not_unicode_is_named_as_well_as_it_can_be() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = Path::new(OsStr::from_bytes(b"/r/caf\xe9/x"));
    let document = Document::parse(br#"{"_parent_wd": "/r"}"#).unwrap();
    let identity = Identity::of(Some(&document), dir, "wepp.nodb");
    assert_names(&identity, "r", "caf\u{fffd}/x/wepp.nodb", "r:wepp");
    let by_path = Identity::of(None, dir.parent().unwrap(), "wepp.nodb");
    assert_eq!(by_path.runid, "caf\u{fffd}");
}
