"""What the checks in the kernels of scripts/uml share: documents that show whether they are whole, the daemon, Redis, and
the count of what passed."""

import contextlib
import faulthandler
import glob
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback

NODBFS = os.environ["UML_TARGET"] + "/debug/nodbfs"
sys.path.insert(0, os.environ["UML_PROJECT"] + "/tests/neighbours")

CHECKS = []
LOGS = []
# a check that takes longer than this, in seconds, hangs
PATIENCE = 150


def check(function):
    """A check passes if it returns; what it returns is printed beside its name."""
    CHECKS.append(function)
    return function


def main():
    failed = 0
    wanted = [function for function in CHECKS if os.environ.get("UML_ONLY", "") in function.__name__]
    for function in wanted:
        start = time.monotonic()
        LOGS.clear()
        signal.signal(signal.SIGALRM, _hangs)
        signal.alarm(PATIENCE)
        # and where even a signal does not get through
        faulthandler.dump_traceback_later(PATIENCE + 15, exit=True)
        try:
            said, verdict = function(), "PASS"
        except Exception:  # noqa: BLE001, the others are to run all the same
            said, verdict = None, "FAIL"
            failed += 1
            traceback.print_exc()
            for log in LOGS:
                tail = "".join(open(log, errors="replace").readlines()[-15:])
                print(f"--- {log}\n{tail}")
        signal.alarm(0)
        took = time.monotonic() - start
        print(f"{verdict} {function.__name__} ({took:.0f} s)" + (f": {said}" if said else ""))
    print(f"{len(wanted) - failed} of {len(wanted)} checks passed")
    sys.exit(failed > 0)


def _hangs(_signal, _frame):
    faulthandler.dump_traceback()
    for status in glob.glob("/proc/[0-9]*/task/*/status"):
        with contextlib.suppress(OSError):
            text = open(status).read()
            if "\nState:\tD" in text:
                waits_in = open(status.replace("status", "wchan")).read()
                print("waits, deaf to signals:", text.split()[1], waits_in)
    raise TimeoutError(f"no end after {PATIENCE} s")


def sh(*command, **options):
    """Runs a command that must succeed, and gives its output."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout.strip()}")
    return done.stdout


def until(condition, what, patience=60):
    """Waits for what must come true."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)


def document(version, size=2000):
    """A controller's state; `version_of` sees whether it is whole."""
    body = "".join(random.choices("abcdefghijklmnop", k=size))
    return json.dumps({"py/object": "x", "version": version, "body": body, "sum": _sum(version, body)}).encode()


def version_of(data):
    """The version of a document. ValueError: it is not whole."""
    state = json.loads(data)
    if state["sum"] != _sum(state["version"], state["body"]):
        raise ValueError("a torn document")
    return state["version"]


def _sum(version, body):
    return hashlib.sha256(f"{version} {body}".encode()).hexdigest()


def read(path):
    """The version that a file holds."""
    with open(path, "rb") as file:
        return version_of(file.read())


class Nodbfs:
    """A mount. Its daemon is a host of its own if `within` is a prefix that enters one."""

    def __init__(self, source, *options, redis=None, within=()):
        self.dir = tempfile.mkdtemp(dir="/tmp")
        self.source, self.path = source, self.dir + "/mnt"
        os.mkdir(self.path)
        self.log = self.dir + "/log"
        LOGS.append(self.log)
        self.command = [*within, NODBFS, "mount", "--foreground", "--state-dir", self.dir + "/state", *options]
        if redis:
            self.command += ["--redis", redis]
        self.start()

    def start(self):
        before = os.stat(self.path).st_dev
        with open(self.log, "a") as log:
            self.daemon = subprocess.Popen([*self.command, self.source, self.path], stdout=log, stderr=log)
        until(lambda: self.daemon.poll() is not None or os.stat(self.path).st_dev != before, "the mount answers")
        if self.daemon.poll() is not None:
            raise RuntimeError("no mount")

    def kill(self):
        self.daemon.kill()

    def crashed(self):
        """After `kill`: what is left of the mount goes."""
        self.daemon.wait()
        subprocess.run(["umount", "-l", self.path], stderr=subprocess.DEVNULL, check=False)

    def stop(self):
        self.daemon.terminate()
        self.daemon.wait(timeout=30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.crashed()


class Redis:
    """A redis-server of the check's own."""

    def __init__(self, address="127.0.0.1", port=6400, within=()):
        self.url = f"redis://{address}:{port}"
        log = tempfile.mktemp(dir="/tmp", suffix=".redis")
        command = ["redis-server", "--bind", address, "--port", str(port), "--save", "", "--dir", "/tmp"]
        self.server = subprocess.Popen([*within, *command, "--protected-mode", "no", "--logfile", log])
        until(lambda: os.path.exists(log) and "Ready to accept" in open(log).read(), "redis-server answers")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.kill()
        self.server.wait()
