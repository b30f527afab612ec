"""NoDb processes as PROTOCOL.md describes them: what nodbfs has to live with, unmodified.

`ModernNoDb` is code since 2026-04-26, `OldNoDb` is code before it. Each does its file I/O below `wd` (a mount or the
source itself) and names its cache keys by `key_wd`, the path under which the field knows the run.

Nothing here is shared with nodbfs; a mistake in one is not hidden by the same mistake in the other.
"""

import hashlib
import json
import os
import socket
import tempfile
import time
import uuid

from resp import Client, RedisError

CACHE_EXPIRY = 259200
LOCK_TTL = int(os.environ.get("WEPPPY_LOCK_TTL_SECONDS", 21600))
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end"
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}


class NoDbAlreadyLockedError(Exception):
    """Somebody holds the lock. NoDb processes never wait for it."""


class NoDbLockLostError(Exception):
    """The lock is no longer ours, so nothing may be dumped."""


class NoDbStaleWriteError(Exception):
    """The file is no longer the one that was loaded."""


class NoDbRunReplacedError(Exception):
    """The run is being replaced: no new lock may be taken."""


class NoDbBase:
    """What old and modern code have in common: names, locks, the logger."""

    def __init__(self, wd, key_wd, controller, redis):
        self.wd, self.key_wd, self.controller = wd, key_wd.rstrip("/"), controller
        self.locks, self.status, self.levels, self.payloads = (Client(redis, db) for db in (0, 2, 15, 13))
        self.doc = self.signature = self.lock_value = self.log_file = None
        self.loaded_from = None

    # -- names (PROTOCOL.md 2 and 3)

    @property
    def name(self):
        return self.controller + ".nodb"

    @property
    def path(self):
        return os.path.join(self.wd, self.name)

    @property
    def cache_key(self):
        return f"{self.key_wd}/{self.name}"

    @property
    def state(self):
        if self.doc is None:
            self.load()
        return self.doc.get("py/state", self.doc)

    def _parent_wd(self):
        return (self.state.get("_parent_wd") or "").rstrip("/")

    @property
    def runid(self):
        parent = self._parent_wd()
        segments = self.key_wd.split("/")
        if parent:
            run = os.path.basename(parent)
        elif "_pups" in segments[1:]:
            run = segments[segments.index("_pups", 1) - 1]
        else:
            run = segments[-1]
        group = self.state.get("_run_group")
        return f"{group};;{self.state.get('_group_name')};;{run}" if group else run

    def _sub(self):
        parent = self._parent_wd()
        return self.key_wd[len(parent) + 1 :] if parent and self.key_wd.startswith(parent + "/") else ""

    @property
    def relpath(self):
        sub = self._sub()
        return f"{sub}/{self.name}" if sub else self.name

    @property
    def channel(self):
        return f"{self.runid}:" + ("omni" if self._sub().startswith("_pups/omni/") else self.controller)

    @property
    def lock_key(self):
        return f"nodb-lock:{self.runid}:{self.relpath}"

    @property
    def fence_key(self):
        return "nodb:run-replacement:" + hashlib.sha256(b"run\0" + self.runid.encode()).hexdigest()

    @property
    def owner(self):
        return f"{socket.gethostname()}:{os.getpid()}"

    # -- locks (PROTOCOL.md 4)

    def lock(self):
        now = int(time.time())
        value = json.dumps(
            {
                "token": uuid.uuid4().hex,
                "owner": self.owner,
                "acquired_at": now,
                "expires_at": now + LOCK_TTL,
                "ttl": LOCK_TTL,
            },
            separators=(",", ":"),
        )
        self._check_fence()
        if self.locks("SET", self.lock_key, value, "NX", "EX", LOCK_TTL) is None:
            raise NoDbAlreadyLockedError(f"{self.lock_key} is held: {self.locks('GET', self.lock_key)}")
        self.lock_value = value
        self._set_flag(True)
        try:
            self._check_fence()
        except NoDbRunReplacedError:
            self.unlock()
            raise

    def unlock(self, force=False):
        """Gives the lock back, by its whole value; a forced release deletes whoever holds it."""
        if force:
            self.locks("DEL", self.lock_key)
        elif self.lock_value is None:
            return
        else:
            self.locks("EVAL", RELEASE, 1, self.lock_key, self.lock_value)
        self.lock_value = None
        self._set_flag(False)

    def is_locked(self):
        """By anyone. A flag without its key is repaired by whoever notices."""
        locked = self.locks("EXISTS", self.lock_key) == 1
        if not locked and self.locks("HGET", self.runid, f"locked:{self.relpath}") == "true":
            self._set_flag(False)
        return locked

    def owns_lock(self):
        return self.lock_value is not None and self.locks("GET", self.lock_key) == self.lock_value

    def _set_flag(self, locked):
        self.locks("HSET", self.runid, f"locked:{self.relpath}", "true" if locked else "false")

    def _check_fence(self):
        """Old code knows no fence."""

    # -- documents (PROTOCOL.md 1 and 5)

    def load(self):
        """Old and modern: the singleton while the file looks the same, then the cache, then the disk."""
        if self.doc is None or self._stat_signature() != self.signature:
            self.hydrate()

    def hydrate(self):
        try:
            text = self._cache("GET", self.cache_key)
            doc = None if text is None else json.loads(text)
        except ValueError:
            self._cache("DEL", self.cache_key)
            doc = None
        if doc is not None and self._accepts(doc):
            self.doc, self.loaded_from = doc, "cache"
            self.signature = self._stat_signature()
            return
        text, self.signature = self._read_file()
        self.doc, self.loaded_from = json.loads(text), "disk"
        self._put_signature()
        self._put_cache()

    def _read_file(self):
        # a dump of the same size raises mtime after its rename (section 6): a reader without the lock may
        # come in between, and reads again
        for _ in range(100):
            with open(self.path, encoding="utf-8") as file:
                before = os.fstat(file.fileno())
                text = file.read()
                after = os.fstat(file.fileno())
            if (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns):
                return text, (after.st_mtime, after.st_size)
        raise OSError(116, "the file changed while it was read", self.path)

    def _stat_signature(self):
        stat = os.stat(self.path)
        return (stat.st_mtime, stat.st_size)

    def _encode(self):
        """What jsonpickle writes: one line, ASCII, separators with a space, no newline at the end."""
        return json.dumps(self.doc)

    def _put_signature(self):
        self.state["_nodb_mtime"], self.state["_nodb_size"] = self.signature

    def _put_cache(self):
        self._cache("SET", self.cache_key, self._encode(), "EX", CACHE_EXPIRY)

    def _cache(self, *command):
        """The cache is a help: without it NoDb goes on from disk."""
        try:
            return self.payloads(*command)
        except (OSError, EOFError, RedisError):
            return None

    def create(self, document):
        """A controller that is not there yet; `dump` makes the file."""
        self.doc, self.signature, self.loaded_from = document, None, "new"

    def dump_and_unlock(self):
        self.dump()
        self.unlock()

    # -- telemetry (PROTOCOL.md 7)

    def log(self, message, level="INFO"):
        wanted = self.levels("GET", f"loglevel:{self.runid}") or "INFO"
        if LEVELS[level] < (int(wanted) if wanted.isdigit() else LEVELS.get(wanted.upper(), 20)):
            return
        if self.log_file is None:  # and then held open for hours
            self.log_file = open(os.path.join(self.wd, self.controller + ".log"), "a", encoding="utf-8")
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self.log_file.write(f"{stamp} [{level}] wepppy.run.{self.runid}.{self.controller}: {message}\n")
        self.log_file.flush()
        self.status("PUBLISH", self.channel, message)


class OldNoDb(NoDbBase):
    """Accepts every cache entry that decodes, truncates the file in place, looks at no signature when it dumps."""

    def _accepts(self, doc):
        return isinstance(doc, dict)

    def _put_signature(self):
        # the oldest documents carry none
        if "_nodb_mtime" in self.state:
            super()._put_signature()

    def dump(self):
        if self.lock_value is None:
            raise NoDbLockLostError("dump() without lock()")
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(self._encode())
            file.flush()
            os.fsync(file.fileno())
        self.signature = self._stat_signature()
        self._put_signature()
        self._put_cache()


class ModernNoDb(NoDbBase):
    """Believes a cache entry only with the file's signature, and replaces the file atomically."""

    def _check_fence(self):
        if self.locks("EXISTS", self.fence_key):
            raise NoDbRunReplacedError(f"run {self.runid} is being replaced")

    def _accepts(self, doc):
        state = doc.get("py/state", doc) if isinstance(doc, dict) else {}
        mtime, size = self._stat_signature()
        said = state.get("_nodb_mtime")
        return state.get("_nodb_size") == size and isinstance(said, (int, float)) and abs(said - mtime) <= 1e-6

    def dump(self):
        """PROTOCOL.md 6, up to `last_modified`; `dump_and_unlock` goes on from there."""
        if not self.owns_lock():
            raise NoDbLockLostError(f"{self.lock_key} is not ours")
        before = self._target_stat()
        if before and (before.st_mtime, before.st_size) != self.signature:
            raise NoDbStaleWriteError(f"{self.path} is {(before.st_mtime, before.st_size)}, loaded was {self.signature}")
        fd, temp = tempfile.mkstemp(prefix=f".{self.name}.", suffix=".tmp", dir=self.wd)
        try:
            os.fchmod(fd, before.st_mode & 0o7777 if before else 0o666 & ~_umask())
            data = self._encode().encode("ascii")
            if os.write(fd, data) != len(data):
                raise OSError(5, "short write", temp)
            os.fsync(fd)
            os.replace(temp, self.path)  # with the temporary file still open
            temp = None
            _fsync_directory(self.wd)
            if before and os.fstat(fd).st_size == before.st_size:
                self._raise_mtime(fd, before)
            self.signature = self._stat_signature()
        finally:
            os.close(fd)
            if temp:
                os.unlink(temp)
        _replace_text(self.wd, "nodb.version", "1000\n")
        self._put_signature()
        self._put_cache()
        self.locks("HSET", self.runid, "last_modified", int(time.time()))

    def dump_and_unlock(self):
        super().dump_and_unlock()
        # the check at the end: what is there now is what was dumped, or somebody's later generation
        text, _ = self._read_file()
        json.loads(text)

    def _target_stat(self):
        try:
            return os.stat(self.path)
        except FileNotFoundError:
            return None

    def _raise_mtime(self, fd, before):
        """A rewrite of the same size must not look like the file before it (PROTOCOL.md 5)."""
        ours, named = os.fstat(fd), os.stat(self.path)
        if (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino):
            raise NoDbStaleWriteError(f"{self.path} was replaced by somebody else")
        raised = max(ours.st_mtime_ns, before.st_mtime_ns + 10**9)
        os.utime(self.path, ns=(ours.st_atime_ns, raised))
        if os.stat(self.path).st_mtime <= before.st_mtime:
            raise NoDbStaleWriteError(f"the mtime of {self.path} cannot be raised")


def _umask():
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


def _fsync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _replace_text(directory, name, text):
    fd, temp = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=directory)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, 0o666 & ~_umask())
        file.write(text)
        file.flush()
        os.fsync(fd)
    os.replace(temp, os.path.join(directory, name))
