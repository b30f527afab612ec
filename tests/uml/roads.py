"""The roads by which programs save a controller. Each leaves `data` in `path` and returns when that is acknowledged."""

import os


def by_close(path, data):
    with open(path, "wb", buffering=0) as file:
        file.write(data)


def by_fsync(path, data):
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def by_rename(path, data):
    """As careless as `jq … > t && mv t x.nodb`: nothing is synced by the program."""
    temporary = path + ".t"
    with open(temporary, "wb", buffering=0) as file:
        file.write(data)
    os.rename(temporary, path)


def by_create(path, data):
    """The old one goes first, as with some archivers."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


ALL = {"close": by_close, "fsync": by_fsync, "rename": by_rename, "create": by_create}
