"""Two hosts with nodbfs on one NFS 4.2 export, a third that mounts it plainly, and Redis on the server: saves are what
they are on a local disk, and show at the next open on every host (promises 4, 6 and 7)."""

import errno
import json
import os
import random
import stat
import subprocess
import sys
import time
import traceback

import roads
from hosts import SERVER, Host
from kit import Nodbfs, Redis, check, document, main, read, version_of
from nfs_server import Server, mount
from nodb import ModernNoDb, NoDbAlreadyLockedError, NoDbStaleWriteError

KEYS = ("--key-root", "/wc1/runs/ab/abc", "--lease-ttl", "5s")

server = Server()
alpha, beta, gamma = Host("alpha"), Host("beta"), Host("gamma")
plain = mount(gamma)
redis = Redis(SERVER)
a = Nodbfs(mount(alpha), *KEYS, redis=redis.url, within=alpha.within)
b = Nodbfs(mount(beta), *KEYS, redis=redis.url, within=beta.within)


def leftovers():
    return [name for name in os.listdir(server.path) if name.startswith((".nodbfs-", ".nfs"))]


@check
def every_road_of_a_save_works():
    for version, (name, save) in enumerate(roads.ALL.items(), 1):
        save(f"{a.path}/{name}.nodb", document(0))
        save(f"{a.path}/{name}.nodb", document(version))
        for place in (a.path, b.path, plain, server.path):
            assert read(f"{place}/{name}.nodb") == version, (name, place)
    os.truncate(f"{a.path}/close.nodb", os.stat(f"{a.path}/close.nodb").st_size)
    os.unlink(f"{a.path}/fsync.nodb")
    try:
        read(f"{b.path}/fsync.nodb")
        raise AssertionError("a removed controller is opened")
    except FileNotFoundError:
        pass
    assert not leftovers(), leftovers()


@check
def mode_owner_and_extended_attributes_survive():
    path = "/keeps.nodb"
    roads.by_close(a.path + path, document(0))
    os.chown(server.path + path, 1234, 2345)
    os.chmod(server.path + path, 0o640)
    os.setxattr(server.path + path, "user.note", b"mine")
    time.sleep(6)  # until alpha believes no older attributes
    for version, name in enumerate(("close", "fsync", "rename"), 1):
        roads.ALL[name](a.path + path, document(version))
        now = os.stat(server.path + path)
        assert (now.st_uid, now.st_gid, stat.S_IMODE(now.st_mode)) == (1234, 2345, 0o640), (name, now)
        assert os.getxattr(server.path + path, "user.note") == b"mine", name
        assert read(server.path + path) == version


@check
def what_nfs_cannot_do_is_said_as_nfs_says_it():
    script = (
        "import ctypes, os, sys; r = ctypes.CDLL(None, use_errno=True).renameat2;"
        "[print(r(-100, b'p', -100, b'q', f), ctypes.get_errno()) for f in (1, 2)]"
    )
    for name in "pq":
        open(f"{plain}/{name}", "w").close()
    said = [subprocess.run([sys.executable, "-c", script], cwd=place, capture_output=True, text=True, check=True).stdout
            for place in (plain, a.path)]
    assert said[0] == said[1], said


def keep_open(path):
    return open(path, "rb")


def link(path):
    os.link(path, path + ".old")


def move_aside(path):
    os.rename(path, path + ".old")


@check
def a_save_shows_at_the_next_open_on_the_other_host():
    """Whatever keeps the old file alive on the server, so that its handle goes on answering."""
    for number, keep in enumerate((None, keep_open, link, move_aside)):
        name = f"/shows{number}.nodb"
        for version in range(1, 9):
            here, there = (a, b) if version % 2 else (b, a)
            if version == 1:
                roads.by_close(here.path + name, document(version))
            else:
                kept = keep(server.path + name) if keep else None
                if keep is move_aside:
                    roads.by_create(here.path + name, document(version))
                else:
                    roads.by_rename(here.path + name, document(version))
                if kept:
                    kept.close()
                if os.path.exists(server.path + name + ".old"):
                    os.unlink(server.path + name + ".old")
            shown = read(there.path + name), read(here.path + name)
            assert shown == (version, version), f"{shown} and not {version}, {keep and keep.__name__}"
            signatures = {(now.st_size, now.st_mtime_ns) for now in map(os.stat, (there.path + name, server.path + name))}
            assert len(signatures) == 1, signatures


@check
def what_a_plain_client_writes_shows_at_the_next_open():
    for number, keep in enumerate((None, keep_open, link, move_aside)):
        name = f"/plainly{number}.nodb"
        roads.by_close(a.path + name, document(0))
        for version in range(1, 6):
            assert read(a.path + name) == read(b.path + name) == version - 1
            kept = None
            if keep:
                kept = keep(server.path + name)
            roads.by_rename(plain + name, document(version))
            if kept:
                kept.close()
            shown = read(a.path + name), read(b.path + name)
            assert shown == (version, version), f"{shown} and not {version}, {keep and keep.__name__}"
            if os.path.exists(server.path + name + ".old"):
                os.unlink(server.path + name + ".old")


def in_processes(*programs):
    """Runs functions side by side, each in a process of its own, and gives what they return."""
    results = []
    children = []
    for program in programs:
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(into, json.dumps(program()).encode())
                os._exit(0)
            except BaseException:  # noqa: BLE001, said and told by the status
                traceback.print_exc()
            os._exit(1)
        os.close(into)
        children.append((pid, out))
    for pid, out in children:
        with os.fdopen(out) as file:
            results.append(file.read())
        assert os.waitpid(pid, 0)[1] == 0
    return [json.loads(result) for result in results]


def editor(path, times):
    """Opens for reading and writing, as a lock; gives how often it was told to come again."""

    def program():
        again = done = 0
        while done < times:
            try:
                with open(path, "r+b", buffering=0) as file:
                    version = version_of(file.read())
                    file.seek(0)
                    file.truncate(file.write(document(version + 1, 900)))
                done += 1
            except OSError as error:
                assert error.errno in (errno.EBUSY, errno.ESTALE), error
                again += 1
        return again

    return program


def nodb(wd, times):
    """A modern NoDb process with its singleton, which it believes as long as `stat` says the same."""

    def program():
        controller = ModernNoDb(wd, KEYS[1], "counted", redis.url)
        again = done = 0
        while done < times:
            try:
                controller.lock()
            except NoDbAlreadyLockedError:
                again += 1
                time.sleep(random.uniform(0.01, 0.1))
                continue
            try:
                controller.load()
                controller.doc.update(json.loads(document(controller.doc["version"] + 1, 900)))
                controller.dump_and_unlock()
                done += 1
            except NoDbStaleWriteError:
                controller.unlock()
                again += 1
        return again

    return program


@check
def no_save_of_two_hosts_and_their_nodb_processes_is_lost():
    roads.by_close(a.path + "/counted.nodb", document(0, 900))
    programs = [editor(place + "/counted.nodb", 25) for place in (a.path, a.path, b.path)]
    again = in_processes(*programs, nodb(a.path, 15), nodb(b.path, 15))
    for place in (a.path, b.path, server.path):
        assert read(place + "/counted.nodb") == 105, (place, read(place + "/counted.nodb"))
    assert not leftovers(), leftovers()
    return f"105 saves, {sum(again)} told to come again"


@check
def a_marker_set_on_another_host_counts_at_the_next_save():
    roads.by_close(a.path + "/marked.nodb", document(1))
    open(plain + "/READONLY", "w").close()
    try:
        roads.by_close(a.path + "/marked.nodb", document(2))
        raise AssertionError("a read-only run was saved to")
    except OSError as error:
        assert error.errno == errno.EROFS, error
    finally:
        os.unlink(plain + "/READONLY")
    roads.by_close(a.path + "/marked.nodb", document(3))
    assert read(b.path + "/marked.nodb") == 3


main()
