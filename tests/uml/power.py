"""Loss of power: a device that from one moment on writes nothing any more, a kernel that forgets what it had in memory,
and the journal replayed. What was acknowledged before that moment must be there, whole (promise 4)."""

import os
import random
import subprocess
import time

import roads
from kit import Nodbfs, Redis, check, document, main, read, sh, until
from saver import Saver

SIZE = 320  # MiB; XFS wants 300
CUTS = 3


class Disk:
    """A file system on a device that can fail."""

    def __init__(self, fs, mkfs=(), options="defaults"):
        self.fs, self.options = fs, options
        self.image, self.name, self.path = f"/tmp/{fs}.img", f"flakey-{fs}", f"/tmp/{fs}"
        with open(self.image, "wb") as image:
            image.truncate(SIZE << 20)
        self.loop = sh("losetup", "-f", "--show", self.image).strip()
        sh("dmsetup", "create", "--noudevsync", self.name, "--table", self.table(0))
        self.device = "/dev/mapper/" + self.name
        if not os.path.exists(self.device):
            sh("dmsetup", "mknodes")
        sh("mkfs." + fs, "-q", *mkfs, self.device)
        os.makedirs(self.path, exist_ok=True)
        self.mount()

    def table(self, down, *features):
        """Always up, or from now on down in the way of the features."""
        up = 0 if down else 1000000
        tail = f"{len(features)} {' '.join(features)}" if features else ""
        return f"0 {SIZE << 11} flakey {self.loop} 0 {up} {1000000 if down else 0} {tail}".strip()

    def cut(self, feature, at_that_moment):
        """No write that is not in the device yet will ever get there."""
        sh("dmsetup", "load", self.name, "--table", self.table(True, feature))
        # what is in flight arrives, nothing else begins, and nothing is flushed for the occasion
        sh("dmsetup", "suspend", "--nolockfs", self.name)
        seen = at_that_moment()
        sh("dmsetup", "resume", "--noudevsync", self.name)
        return seen

    def mount(self):
        sh("mount", "-t", self.fs, "-o", self.options, self.device, self.path)

    def power_on(self):
        """The old kernel's memory is gone; the device works again."""
        until(lambda: not subprocess.run(["umount", self.path], stderr=subprocess.DEVNULL).returncode, "umount")
        sh("dmsetup", "load", self.name, "--table", self.table(False))
        sh("dmsetup", "suspend", "--nolockfs", self.name)
        sh("dmsetup", "resume", "--noudevsync", self.name)
        self.mount()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", self.path], check=False)
        subprocess.run(["dmsetup", "remove", "--noudevsync", "--force", self.name], check=False)
        subprocess.run(["losetup", "-d", self.loop], check=False)
        os.unlink(self.image)


class Tally:
    """What became of what was acknowledged."""

    def __init__(self):
        self.cuts = self.acked = self.lost = self.torn = 0

    def look(self, path, acked, tried):
        """The version that is there after the power came back."""
        try:
            version = read(path)
        except (ValueError, FileNotFoundError):
            self.torn += 1
            return acked
        self.lost += version < acked
        assert version <= tried, f"{path} holds {version}, {tried} was the last"
        return version

    def __str__(self):
        return f"{self.cuts} cuts, {self.acked} acknowledged saves; {self.lost} documents lost, {self.torn} torn"


def saver(path, save, begin):
    """Saves ever new versions, of few blocks or many."""
    return Saver(lambda version: save(path, document(version, random.choice((2000, 9000, 30000)))), begin)


def save_and_cut(disk, directory, saves, versions, feature, tally, at_that_moment, afterwards=lambda savers: None):
    """One loss of power in the middle of everybody's saves; what each has acknowledged, and tried."""
    savers = {name: saver(f"{directory}/{name}.nodb", save, versions.get(name, 0)) for name, save in saves.items()}
    for other in savers.values():
        other.goes_on()
    time.sleep(random.uniform(0.1, 1.2))

    def remember():
        at_that_moment()
        return {name: other.seen.acked for name, other in savers.items()}

    acked = disk.cut(feature, remember)
    afterwards([other.seen for other in savers.values()])
    for other in savers.values():
        other.end()
    tally.cuts += 1
    tally.acked += sum(acked[name] - versions.get(name, 0) for name in saves)
    return acked, {name: other.seen.tried for name, other in savers.items()}


# a controller that is removed and created anew is, for a moment, rightly not there
SAVES = {name: roads.ALL[name] for name in ("close", "fsync", "rename")}


def cuts_through_the_mount(fs, redis=None):
    tally, versions = Tally(), {}
    with Disk(fs) as disk:
        for _ in range(CUTS):
            with Nodbfs(disk.path, "--lease-ttl", "2s", redis=redis) as mount:
                acked, tried = save_and_cut(disk, mount.path, SAVES, versions, "drop_writes", tally, mount.kill)
                mount.crashed()
            disk.power_on()
            for name in SAVES:
                versions[name] = tally.look(f"{disk.path}/{name}.nodb", acked[name], tried[name])
            with Nodbfs(disk.path, redis=redis) as mount:
                for name in SAVES:
                    shown = read(f"{mount.path}/{name}.nodb")
                    assert shown == versions[name], f"{name}: {shown} in the mount, {versions[name]} on disk"
                left = [name for name in os.listdir(mount.path) if name.startswith(".nodbfs-")]
                assert not left, left
            versions = {name: max(versions[name], tried[name]) for name in SAVES}
    assert not tally.lost and not tally.torn, tally
    return tally


@check
def acknowledged_saves_survive_a_power_cut_on_ext4():
    return cuts_through_the_mount("ext4")


@check
def acknowledged_saves_survive_a_power_cut_on_xfs():
    return cuts_through_the_mount("xfs")


@check
def acknowledged_saves_survive_a_power_cut_with_redis_on_another_host():
    with Redis() as redis:
        return cuts_through_the_mount("ext4", redis.url)


@check
def a_disk_that_takes_no_more_writes_acknowledges_nothing():
    tally, versions, refused = Tally(), {}, []
    for fs in ("ext4", "xfs"):
        with Disk(fs) as disk, Nodbfs(disk.path) as mount:

            def afterwards(savers):
                cut = time.monotonic()
                until(lambda: all(seen.errors > 2 for seen in savers), "saves fail")
                assert all(seen.begun < cut for seen in savers), "a dead disk has acknowledged a save"
                refused.extend(os.strerror(seen.errno) for seen in savers)

            acked, tried = save_and_cut(
                disk, mount.path, SAVES, versions, "error_writes", tally, lambda: None, afterwards
            )
            mount.stop()
            disk.power_on()
            for name in SAVES:
                tally.look(f"{disk.path}/{name}.nodb", acked[name], tried[name])
    assert not tally.lost and not tally.torn, tally
    return f"{tally}; then {', '.join(set(refused))}"


@check
def the_control_without_fsync_loses_what_was_acknowledged():
    """The same treatment must be able to show a loss: the same program beside nodbfs."""
    tally, versions = Tally(), {}
    saves = {"close": roads.by_close, "rename": roads.by_rename}
    with Disk("ext4", options="noauto_da_alloc") as disk:
        for _ in range(CUTS):
            acked, tried = save_and_cut(disk, disk.path, saves, versions, "drop_writes", tally, lambda: None)
            disk.power_on()
            for name in saves:
                tally.look(f"{disk.path}/{name}.nodb", acked[name], tried[name])
            versions = tried
    assert tally.lost + tally.torn > 0, tally
    return tally


main()
