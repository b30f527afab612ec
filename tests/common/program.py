"""A program that knows plain files and errnos, and nothing of NoDb: driven step by step, a JSON request per line on
stdin, a JSON answer per line on stdout.

    {"op": "open", "slot": "a", "name": "wepp.nodb", "flags": 2}     {"ok": true}
    {"op": "read", "slot": "a"}                                      {"ok": true, "text": "{}"}
    {"op": "fsync", "slot": "a"}                                     {"ok": false, "errno": "ESTALE"}

Names are below the directory of the last "enter".
"""

import ctypes
import errno
import json
import os
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


class Program:
    """The operations by name; each returns the members of its answer."""

    def __init__(self):
        self.dir, self.slots = None, {}

    def enter(self, dir):
        """Forgets whatever was open, wherever that was."""
        for fd in self.slots.values():
            try:
                os.close(fd)
            except OSError:
                pass
        self.dir, self.slots = dir, {}

    def path(self, name):
        return os.path.join(self.dir, name)

    def open(self, slot, name, flags):
        self.slots[slot] = os.open(self.path(name), flags, 0o644)

    def read(self, slot):
        fd = self.slots[slot]
        return {"text": os.pread(fd, 1 << 20, 0).decode()}

    def write(self, slot, text):
        fd = self.slots[slot]
        data = text.encode()
        if os.pwrite(fd, data, 0) != len(data):
            raise OSError(errno.EIO, "short write")
        os.ftruncate(fd, len(data))

    def fsync(self, slot):
        os.fsync(self.slots[slot])

    def close(self, slot):
        os.close(self.slots.pop(slot))

    def put(self, name, text):
        """A file made anew, as a whole."""
        with open(self.path(name), "w") as file:
            file.write(text)

    def get(self, name):
        with open(self.path(name)) as file:
            return {"text": file.read()}

    def rename(self, source, target, flags=0):
        source, target = (self.path(name).encode() for name in (source, target))
        if LIBC.renameat2(AT_FDCWD, source, AT_FDCWD, target, flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def unlink(self, name):
        os.unlink(self.path(name))


def main():
    program = Program()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": True, **(getattr(program, request.pop("op"))(**request) or {})}
        except OSError as error:
            answer = {"ok": False, "errno": errno.errorcode[error.errno]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
