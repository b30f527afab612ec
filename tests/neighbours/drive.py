"""One NoDb process, driven step by step: a JSON request per line on stdin, a JSON answer per line on stdout.

    python3 drive.py --style modern --redis unix:///run/redis.sock --wd /mnt/run --controller wepp
    {"op": "lock"}                               {"ok": true, ...}
    {"op": "set", "key": "x", "value": 1}        {"ok": true}
    {"op": "dump"}                               {"ok": false, "error": "NoDbStaleWriteError", "message": ...}

An answer that is not ok names the exception's class, and `errno` if the operating system gave one.
"""

import argparse
import json
import sys
import time

from nodb import ModernNoDb, NoDbAlreadyLockedError, NoDbStaleWriteError, OldNoDb


class Driver:
    """The operations by name; each returns the members of its answer."""

    def __init__(self, nodb):
        self.nodb = nodb

    def load(self):
        """getInstance(): the singleton, the cache or the disk; says which."""
        self.nodb.loaded_from = "memory"
        self.nodb.load()
        return {"from": self.nodb.loaded_from, "signature": self.nodb.signature}

    def reload(self):
        """As a new process would load it."""
        self.nodb.hydrate()
        return {"from": self.nodb.loaded_from, "signature": self.nodb.signature}

    def move(self, wd, key_wd):
        """On to another run, of which it has loaded nothing."""
        nodb = self.nodb
        nodb.wd, nodb.key_wd = wd, key_wd
        nodb.signature = nodb.lock_value = nodb.loaded_from = None
        nodb.doc = {}

    def info(self):
        names = ("runid", "relpath", "channel", "lock_key", "fence_key", "cache_key", "owner", "path")
        return {name: getattr(self.nodb, name) for name in names}

    def get(self, key):
        return {"value": self.nodb.state.get(key)}

    def set(self, key, value):
        self.nodb.state[key] = value

    def text(self):
        return {"value": self.nodb._encode()}

    def create(self, document):
        self.nodb.create(document)

    def lock(self):
        self.nodb.lock()
        return {"value": self.nodb.lock_value}

    def unlock(self, force=False):
        self.nodb.unlock(force)

    def is_locked(self):
        return {"value": self.nodb.is_locked()}

    def dump(self):
        self.nodb.dump()
        return {"signature": self.nodb.signature}

    def dump_and_unlock(self):
        self.nodb.dump_and_unlock()
        return {"signature": self.nodb.signature}

    def log(self, message, level="INFO"):
        self.nodb.log(message, level)

    def locked_update(self, values):
        """`with nodb.locked():` around a few assignments."""
        self._locked(lambda state: state.update(values))
        return {"signature": self.nodb.signature}

    def increment(self, key="_counter", times=1, retry=False, careless=False, pause=0.005, tries=4000):
        """Adds one, `times` times, each under its own lock; says how often it was turned away.

        A careless caller loads before it locks: modern code then refuses a stale write, old code loses updates.
        """
        turned_away = 0
        for _ in range(times):
            for left in reversed(range(tries if retry else 1)):
                try:
                    self._locked(lambda state: state.update({key: state.get(key, 0) + 1}), careless)
                    break
                except (NoDbAlreadyLockedError, NoDbStaleWriteError):
                    turned_away += 1
                    if not left:
                        raise
                    time.sleep(pause)
        return {"turned_away": turned_away}

    def _locked(self, change, careless=False):
        nodb = self.nodb
        if careless:
            nodb.load()
        nodb.lock()
        try:
            if not careless:
                nodb.load()
            change(nodb.state)
            nodb.dump_and_unlock()
        except BaseException:
            nodb.doc = None  # what was assigned and not dumped must not be seen again
            nodb.unlock()
            raise


OPERATIONS = {name for name in vars(Driver) if not name.startswith("_")}


def answer(driver, line):
    try:
        request = json.loads(line)
        operation = request.pop("op")
        if operation not in OPERATIONS:
            raise ValueError(f"no such operation: {operation}")
        return {"ok": True, **(getattr(driver, operation)(**request) or {})}
    except Exception as error:
        said = {"ok": False, "error": type(error).__name__, "message": str(error)}
        return {**said, "errno": error.errno} if isinstance(error, OSError) else said


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", required=True, help="redis:// or unix:// URL")
    parser.add_argument("--wd", required=True, help="where the process does its file I/O")
    parser.add_argument("--key-wd", help="the path that names its cache keys; default: --wd")
    parser.add_argument("--controller", required=True)
    parser.add_argument("--style", choices=["modern", "old"], required=True)
    args = parser.parse_args()
    style = ModernNoDb if args.style == "modern" else OldNoDb
    driver = Driver(style(args.wd, args.key_wd or args.wd, args.controller, args.redis))
    for line in sys.stdin:
        print(json.dumps(answer(driver, line)), flush=True)


if __name__ == "__main__":
    main()
