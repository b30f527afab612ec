"""A program that saves through the mount by one road after the other, and says what it was told.

A JSON request per line on stdin, `{"road": "close", "at": "/mnt/run"}`, and an answer per line on stdout,
`{"told": ["EIO", "ok"]}`: the outcome of each call that could make the change, in order.
"""

import ctypes
import errno
import json
import os
import sys

from documents import document

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def save(path, flags, text, sync=False):
    fd = os.open(path, os.O_WRONLY | flags, 0o644)
    os.write(fd, text.encode())
    if sync:
        yield lambda: os.fsync(fd)
    yield lambda: os.close(fd)


def close(at):
    yield from save(f"{at}/wepp.nodb", os.O_TRUNC, document(1))


def fsync(at):
    yield from save(f"{at}/wepp.nodb", os.O_TRUNC, document(1), sync=True)


def create(at):
    yield from save(f"{at}/wepp.nodb", os.O_CREAT | os.O_EXCL, document(1))


def refused(at):
    yield from save(f"{at}/wepp.nodb", os.O_TRUNC, document(1)[:-1])


def rename(at):
    yield lambda: os.rename(f"{at}/draft", f"{at}/wepp.nodb")


def symlink_onto(at):
    os.symlink("draft", f"{at}/symlink")
    yield lambda: os.rename(f"{at}/symlink", f"{at}/wepp.nodb")


def unlink(at):
    yield lambda: os.unlink(f"{at}/wepp.nodb")


def move_away(at):
    yield lambda: os.rename(f"{at}/wepp.nodb", f"{at}/kept.json")


def link(at):
    yield lambda: os.link(f"{at}/draft", f"{at}/wepp.nodb")


def exchange(at):
    one, other = f"{at}/wepp.nodb".encode(), f"{at}/soils.nodb".encode()

    def call():
        if LIBC.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    yield call


def utimens(at):
    path = f"{at}/wepp.nodb"
    with open(path, "rb") as file:
        file.read()
    yield lambda: os.utime(path)


def listing(at):
    yield lambda: os.listdir(at)


ROADS = {road.__name__: road for road in (close, fsync, create, refused, rename, symlink_onto, unlink, move_away, link, exchange, utimens, listing)}


def told_by(road, at):
    told = []
    try:
        for call in road(at):
            try:
                call()
                told.append("ok")
            except OSError as error:
                told.append(errno.errorcode[error.errno])
    except OSError as error:
        told.append(errno.errorcode[error.errno])
    return told


for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({"told": told_by(ROADS[request["road"]], request["at"])}), flush=True)
