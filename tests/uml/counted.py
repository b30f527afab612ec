"""Two hosts add one to a controller, again and again, while something happens: what is there in the end is the number of
saves that were acknowledged, or one was lost or made up."""

import errno
from typing import NamedTuple

import roads
from kit import document, read, version_of
from saver import Saver

# the base changed, or the lease was lost; somebody else holds the lock; Redis does not answer in time
REFUSED = (errno.ESTALE, errno.EBUSY, errno.ENOLCK)


class Count(NamedTuple):
    saves: int
    refused: int

    def __str__(self):
        return f"{self.saves} saves, {self.refused} refused"


def adder(path):
    def add_one(_number):
        with open(path, "r+b", buffering=0) as file:
            version = version_of(file.read())
            file.seek(0)
            file.truncate(file.write(document(version + 1, 900)))

    return Saver(add_one, expected=REFUSED)


def counted(mounts, source, name, happens):
    """`happens` is called with the savers at work; how many saves there were."""
    roads.by_close(mounts[0].path + name, document(0, 900))
    savers = [adder(mount.path + name) for mount in mounts]
    for saver in savers:
        saver.goes_on()
    happens(savers)
    for saver in savers:
        saver.goes_on()
    for saver in savers:
        saver.end()
    refused = sum(saver.seen.errors for saver in savers)
    total = sum(saver.seen.tried for saver in savers) - refused
    for place in (source, *(mount.path for mount in mounts)):
        found = read(place + name)
        assert found == total, f"{found} in {place}, {total} were acknowledged"
    return Count(total, refused)
