"""A process that saves again and again, beside the check. It is no thread: whatever the check started would inherit the
descriptors of half-done saves, and a child that closes one commits it."""

import ctypes
import mmap
import os
import time
import traceback

from kit import until


class Seen(ctypes.Structure):
    """What the check sees of the process while it runs."""

    _fields_ = [
        ("tried", ctypes.c_int64),
        ("acked", ctypes.c_int64),
        ("begun", ctypes.c_double),  # when the save was begun that was acknowledged last
        ("errors", ctypes.c_int64),
        ("errno", ctypes.c_int64),  # of the last error
        ("unexpected", ctypes.c_int64),
        ("ended", ctypes.c_int64),
    ]


class Saver:
    """Calls `save` with the numbers after `begin`; an error of `expected`, or any if there is none, is only counted."""

    def __init__(self, save, begin=0, expected=()):
        self.seen = Seen.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        self.seen.tried = self.seen.acked = begin
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.run(save, expected)
            except BaseException:  # noqa: BLE001, the check is told and the process ends all the same
                self.seen.unexpected = -1
                traceback.print_exc()
            finally:
                os._exit(0)

    def run(self, save, expected):
        seen = self.seen
        while not seen.ended:
            begun = time.monotonic()
            seen.tried += 1
            try:
                save(seen.tried)
            except OSError as error:
                seen.errors += 1
                seen.errno = error.errno
                if expected and error.errno not in expected:
                    seen.unexpected = error.errno
                time.sleep(0.02)
            else:
                seen.acked, seen.begun = seen.tried, begun

    def goes_on(self):
        before = self.seen.acked
        until(lambda: self.seen.acked > before, "saves go on")

    def end(self):
        self.seen.ended = 1
        until(lambda: os.waitpid(self.pid, os.WNOHANG)[0], "the last save ends")
        assert not self.seen.unexpected, f"errno {self.seen.unexpected} of a save"
