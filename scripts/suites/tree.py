"""Makes the tree that the real programs work on, the same each time: tree.py DIRECTORY."""

import os
import random
import subprocess
import sys

chance = random.Random(1)
os.makedirs(sys.argv[1])
os.chdir(sys.argv[1])
os.umask(0o022)

directories = [b"."]
for number in range(40):
    parent = chance.choice(directories)
    directories.append(os.path.join(parent, b"dir%d" % number))
    os.mkdir(directories[-1])

files = []
for number in range(400):
    name = chance.choice([b"file%d", b".hidden%d", b"with space %d", b"\xff\xfe not utf-8 %d", b"n" * 240 + b"%d"]) % number
    files.append(os.path.join(chance.choice(directories), name))
    size = chance.choice([0, 1, 100, 4096, 4097, 70_000])
    with open(files[-1], "wb") as file:
        # half of it packs well
        file.write(chance.randbytes(size // 2) + b"line of text\n" * (size // 26))
    os.chmod(files[-1], chance.choice([0o644, 0o600, 0o755, 0o444, 0o2755, 0o4755]))

with open(b"sparse", "wb") as file:
    for offset in (0, 1 << 20, 5 << 20):
        file.seek(offset)
        file.write(b"island")
    file.truncate(8 << 20)
for number in range(20):
    os.link(files[number], b"%d.linked" % number)
    os.symlink(chance.choice(files), b"symlink%d" % number)
os.symlink(b"nowhere", b"dangling")
os.mkfifo(b"fifo")
for number in range(0, 400, 10):
    os.setxattr(files[number], "user.number", b"%d" % number)
    os.setxattr(files[number], "user.binary", chance.randbytes(200))
os.chmod(directories[3], 0o1777)
subprocess.run(["setfacl", "-m", "u:0:rwx,m::rx", files[5]], check=True)
subprocess.run(["setfacl", "-d", "-m", "u:0:rwx,g:0:r", directories[4]], check=True)

for place, below, names in os.walk(b".", topdown=False):
    for name in below + names + [b"."]:
        when = chance.randrange(10**18, 15 * 10**17)
        os.utime(os.path.join(place, name), ns=(when, when), follow_symlinks=False)
