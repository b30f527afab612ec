"""Looks at a run from outside, as NoDb processes and shells do, and says which promises are broken.

A JSON request per line on stdin, an answer per line on stdout: `{"broken": [...], ...}`, each of them in words.
Nothing here is shared with nodbfs; the neighbours are those of `tests/neighbours`.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "neighbours"))

from documents import document, fields, number, plain_state
from nodb import ModernNoDb, NoDbAlreadyLockedError, NoDbStaleWriteError, OldNoDb
from resp import Client

# only a failure waits for so long
PATIENCE = 30
STRANGER = '{"token":"0123456789abcdef0123456789abcdef","owner":"elsewhere:17","acquired_at":1760000000,"expires_at":4000000000,"ttl":21600}'
# the run's other controller, whose lock somebody else holds
HELD = "held.nodb"
SHELL = 'printf %s "$1" > "$2"'


def read(path):
    """Which document is there; `None`: no file."""
    try:
        with open(path, encoding="utf-8") as file:
            return number(file.read())
    except FileNotFoundError:
        return None


def leftover_name():
    """The temporary file of a daemon that is dead."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    return f".nodbfs-{os.uname().nodename}-{os.stat('/proc/self/ns/pid').st_ino}-{dead.pid}-0.tmp"


def eventually(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Watcher(threading.Thread):
    """Reads all the time, and remembers what was no whole document."""

    def __init__(self, paths):
        super().__init__(daemon=True)
        self.paths, self.torn, self.ended = paths, [], threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(0.005):
            for path in self.paths:
                try:
                    read(path)
                except (OSError, ValueError, KeyError) as error:
                    self.torn.append(f"a reader of {path} saw {error!r}")

    def end(self):
        self.ended.set()
        self.join()
        return self.torn


class Run:
    """One run directory while something is done to it."""

    def __init__(self, run, redis, beside, watched, old, contested, leftover):
        """`old` are the documents to begin with; `beside` is the run in another mount, if there is one, where somebody
        reads all the time if it is `watched`: such a reader also makes stale entries good.
        """
        self.run, self.redis, self.beside = run, redis, beside
        self.neighbour, self.broken = None, []
        os.mkdir(run)
        for name, n in {**old, HELD: 0}.items():
            if n is not None:
                with open(f"{run}/{name}", "w", encoding="utf-8") as file:
                    file.write(document(n))
        if leftover:
            with open(f"{run}/{leftover_name()}", "w", encoding="utf-8") as file:
                file.write("{")
        self.contested = contested
        self.controllers = [name for name in old if name.endswith(".nodb")]
        self.places = [place for place in (run, beside) if place]
        if redis:
            self.locks, self.payloads = Client(redis, 0), Client(redis, 13)
            self.locks("SET", self.lock_key(HELD), STRANGER)
            self.locks("HSET", os.path.basename(run), f"locked:{HELD}", "true")
            for name in self.controllers:
                if old[name] is not None:
                    self.nodb(OldNoDb, name).hydrate()
                    read(f"{beside}/{name}")
        read_at = self.places if watched else [run]
        self.watcher = Watcher([f"{place}/{name}" for place in read_at for name in self.controllers])

    def nodb(self, style, name):
        neighbour = style(self.run, self.run, name.removesuffix(".nodb"), self.redis)
        if not os.path.exists(neighbour.path):
            neighbour.create(json.loads(document(0)))
        return neighbour

    def lock_key(self, name):
        return f"nodb-lock:{os.path.basename(self.run)}:{name}"

    def lock(self, name):
        return self.locks("GET", self.lock_key(name))

    def mirror(self, name):
        return self.locks("HGET", os.path.basename(self.run), f"locked:{name}")

    def expect(self, condition, words):
        if not condition:
            self.broken.append(words)

    # -- a modern neighbour takes over from a daemon that is stopped

    def take_over(self, n):
        """Gets the lock when it has expired, commits the nth document and keeps the lock. Says whether it was let."""
        if self.neighbour is None:
            self.neighbour = self.nodb(ModernNoDb, self.contested)
            self.get_lock(self.neighbour)
            if os.path.exists(self.neighbour.path):
                self.neighbour.load()
        self.neighbour.state.update(fields(n))
        try:
            self.neighbour.dump()
            return {"committed": True}
        except NoDbStaleWriteError:
            return {"committed": False}

    def get_lock(self, neighbour):
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return neighbour.lock()
            except NoDbAlreadyLockedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def give_back(self):
        """The neighbour's lock is still its own and says so."""
        self.expect(self.neighbour.owns_lock(), "the neighbour's lock was harmed")
        self.expect(self.mirror(self.contested) == "true", "the mirror of the neighbour's lock was harmed")
        self.neighbour.unlock()

    # -- what the promises are about

    def frozen(self, allowed, gap):
        """The daemon is stopped or dead: nothing is torn, and nobody modern believes an old entry."""
        shown = self.look(allowed, gap, self.run)
        for name in self.controllers if self.redis else []:
            self.entry_of(name, ModernNoDb)
        return {"gap": shown, "stale": self.any_stale()}

    def any_stale(self):
        """Whether old code, which believes any entry, believes what is not on disk."""
        names = self.controllers if self.redis else []
        return any(self.believed(name, OldNoDb) not in (None, read(f"{self.run}/{name}")) for name in names)

    def look(self, allowed, gap, place):
        """What is at `place` is one of the allowed states, or one of those of a known gap: then true."""
        try:
            seen = {name: read(f"{place}/{name}") for name in allowed[0]}
            self.expect(seen in allowed + gap, f"{place} shows {seen}, not {' or '.join(map(str, allowed))}")
            return seen not in allowed and seen in gap
        except (OSError, ValueError, KeyError) as error:
            self.broken.append(f"{place}: {error!r}")
            return False

    def believed(self, name, style):
        """The document that a new process would believe the cache has; `None`: it reads the disk."""
        text = self.payloads("GET", f"{self.run}/{name}")
        if text is None:
            return None
        try:
            return number(text) if self.nodb(style, name)._accepts(json.loads(text)) else None
        except FileNotFoundError:
            return None

    def entry_of(self, name, style):
        """No process of this style believes an entry that is not the file's document."""
        believed = self.believed(name, style)
        on_disk = read(f"{self.run}/{name}")
        self.expect(believed in (None, on_disk), f"{style.__name__} believes {believed} of {name}, where {on_disk} is")

    def settled(self, allowed, gap, mount, debts, killed):
        """The call has returned, or the daemon was replaced by another at `mount`: everything is as it was told."""
        self.broken += self.watcher.end()
        self.expect(eventually(lambda: not unpaid(debts)), f"debts are not paid: {unpaid(debts)}")
        stale = not killed and self.any_stale()
        shown = [self.look(allowed, gap, place) for place in (*self.places, mount)]
        self.expect(eventually(lambda: not self.leftovers(mount)), f"{self.leftovers(mount)} are left")
        if self.redis:
            for name in self.controllers:
                self.entry_of(name, ModernNoDb)
                # a reader at the next daemon's mount has made an entry good, where there is a controller to be read
                if killed and self.is_there(name):
                    self.entry_of(name, OldNoDb)
                self.unlocked(name, killed)
        return {"gap": any(shown), "stale": stale or self.any_stale()}

    def is_there(self, name):
        return os.path.isfile(f"{self.run}/{name}") and not os.path.islink(f"{self.run}/{name}")

    def leftovers(self, mount):
        os.listdir(mount)
        return [name for name in os.listdir(self.run) if name.startswith(".nodbfs")]

    def unlocked(self, name, killed):
        """No lock of nodbfs's is left; after a kill it ends with its lease, and a flag says so once somebody has looked."""
        self.expect(eventually(lambda: self.lock(name) is None), f"{name} stays locked: {self.lock(name)}")
        if killed:
            self.nodb(OldNoDb, name).is_locked()
        self.expect(eventually(lambda: self.mirror(name) in (None, "false")), f"the mirror of {name} stays {self.mirror(name)}")

    def goes_on(self, mount):
        """A shell saves through the mount and a neighbour beside it, and everybody sees it."""
        name = self.contested
        if os.path.islink(f"{self.run}/{name}"):
            os.unlink(f"{mount}/{name}")
        saved = eventually(lambda: self.shell(f"{mount}/{name}", 5) == 5)
        self.expect(saved, "a shell cannot save")
        if self.redis:
            self.everybody_sees(name, 5, mount)
            modern = self.nodb(ModernNoDb, name)
            self.get_lock(modern)
            modern.load()
            modern.state.update(fields(6))
            modern.dump_and_unlock()
        self.everybody_sees(name, 6 if self.redis else 5, mount)
        self.expect(eventually(lambda: not self.leftovers(mount)), f"{self.leftovers(mount)} are left in the end")
        if self.redis:
            for name in self.controllers:
                self.unlocked(name, False)
            self.expect(self.lock(HELD) == STRANGER and self.mirror(HELD) == "true", "a stranger's lock was harmed")

    def shell(self, path, n):
        subprocess.run(["sh", "-c", SHELL, "sh", document(n), path], stderr=subprocess.DEVNULL, check=False)
        return read(os.path.join(self.run, os.path.basename(path)))

    def everybody_sees(self, name, n, mount):
        for place in (*self.places, mount):
            self.expect(read(f"{place}/{name}") == n, f"{place} does not show {n}")
        if self.redis:
            for style in (OldNoDb, ModernNoDb):
                neighbour = self.nodb(style, name)
                neighbour.hydrate()
                seen, on_disk = neighbour.state, plain_state(open(f"{self.run}/{name}", encoding="utf-8").read())
                wrong = {key for key in on_disk if seen.get(key) != on_disk[key]}
                self.expect(not wrong, f"{style.__name__} sees another {wrong} than is on disk")


def unpaid(debts):
    return [name for _, _, names in os.walk(debts) for name in names if name.endswith(".json")]


def answer(run, request):
    """One request; the run it leaves, and the answer."""
    operation = request.pop("op")
    if operation == "prepare":
        return Run(**request), {"broken": []}
    said = getattr(run, operation)(**request) or {}
    broken, run.broken = run.broken, []
    return run, {"broken": broken, **said}


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    run = None
    for line in sys.stdin:
        try:
            run, said = answer(run, json.loads(line))
        except Exception:
            said = {"broken": [f"the observer cannot go on: {traceback.format_exc()}"]}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
