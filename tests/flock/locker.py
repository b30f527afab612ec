"""A process that locks files, one step after another: each line of its input is an expression, each line of its
output what that gives as JSON, or the name of the errno it ended with."""

import errno
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from os import O_CREAT, O_RDONLY, O_RDWR, O_WRONLY, close, dup

LOCK = "hhqqi4x"
KINDS = {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "none": fcntl.F_UNLCK}
OFD = {fcntl.F_GETLK: 36, fcntl.F_SETLK: 37, fcntl.F_SETLKW: 38}


def fcntl_lock(fd, command, kind, start, length, ofd):
    lock = struct.pack(LOCK, KINDS[kind], os.SEEK_SET, start, length, 0)
    command = OFD[command] if ofd else command
    kind, _, start, length, pid = struct.unpack(LOCK, fcntl.fcntl(fd, command, lock))
    kind = next(name for name, number in KINDS.items() if number == kind)
    return [kind, start, length, pid] if kind != "none" else ["none"]


def lock(fd, kind="write", start=0, length=0, wait=False, ofd=False):
    fcntl_lock(fd, fcntl.F_SETLKW if wait else fcntl.F_SETLK, kind, start, length, ofd)


def unlock(fd, start=0, length=0, ofd=False):
    lock(fd, "none", start, length, ofd=ofd)


def test(fd, kind="write", start=0, length=0, ofd=False):
    return fcntl_lock(fd, fcntl.F_GETLK, kind, start, length, ofd)


def alarmed(call, after=0.2):
    """Calls with an alarm set; a signal that is caught ends the wait."""

    def ring(_signal, _frame):
        raise InterruptedError(errno.EINTR, "alarm")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, after, 0.05)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def child(call):
    """Starts a child that does so and sleeps; its process id once it is done."""
    done, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        call()
        os.write(tell, b".")
        signal.pause()
    os.read(done, 1)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def refused_after_close(path, rounds):
    """How often a lock is not free right after the last descriptor of its file was closed."""
    refused = 0
    for _ in range(rounds):
        one, two = os.open(path, O_RDWR), os.open(path, O_RDWR)
        flock(one, LOCK_EX)
        close(one)
        try:
            flock(two, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            refused += 1
        close(two)
    return refused


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def shell(line):
    """The exit status and what it says."""
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    return [done.returncode, done.stdout.strip() or done.stderr.strip()]


def main():
    os.setsid()
    names = dict(globals())
    for line in sys.stdin:
        try:
            answer = eval(line, names)
        except OSError as error:
            answer = errno.errorcode[error.errno]
        if callable(answer):
            answer = None
        print(json.dumps(answer), flush=True)


main()
