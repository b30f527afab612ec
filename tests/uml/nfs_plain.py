"""Everything but controllers on NFS: what the server does to plain files shows through nodbfs without an error of its own,
and others have the rights they have without it (promise 8)."""

import errno
import os
import shutil
import subprocess

from hosts import Host
from kit import Nodbfs, check, main, until
from nfs_server import Server, mount

server = Server()
alpha = Host("alpha")
native = mount(alpha)
nodbfs = Nodbfs(native, "--allow-other", within=alpha.within)
through = nodbfs.path


def outcome(path):
    """What a program gets that reads a file."""
    try:
        with open(path) as file:
            return file.read()
    except OSError as error:
        return errno.errorcode[error.errno]


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def replaced(path, text):
    write(path + ".t", text)
    os.rename(path + ".t", path)


def made_anew(path, text):
    """ext4 gives the new file the old one's number."""
    os.unlink(path)
    write(path, text)


def written_in_place(path, text):
    write(path, text)


def made_anew_with_its_directory(path, text):
    shutil.rmtree(os.path.dirname(path))
    os.mkdir(os.path.dirname(path))
    write(path, text)


@check
def a_plain_file_that_the_server_changes_shows_without_an_error():
    seen = set()
    for change in (replaced, made_anew, written_in_place, made_anew_with_its_directory):
        path = f"/{change.__name__}/plain.txt"
        os.mkdir(os.path.dirname(server.path + path))
        write(server.path + path, "0")
        for text in "123":
            until(lambda: outcome(through + path) in "0123", "it is there")
            held = open(server.path + path) if text == "3" else None  # its handle goes on answering
            change(server.path + path, text)

            def shows():
                seen.add((change.__name__, outcome(through + path)))
                return (change.__name__, text) in seen

            until(shows, f"{change.__name__}, {text} shows")
            if held:
                held.close()
    # a directory that is another one now is noticed when its descriptor is of no use any more
    allowed = {("made_anew_with_its_directory", error) for error in ("ENOENT", "ESTALE")}
    errors = {(how, what) for how, what in seen if what not in "0123"} - allowed
    assert not errors, errors


@check
def a_file_removed_on_the_server_while_it_is_open_is_estale_and_gone():
    write(server.path + "/open.txt", "0" * 100000)
    with open(through + "/open.txt", "rb", buffering=0) as ours, open(native + "/open.txt", "rb", buffering=0) as theirs:
        os.unlink(server.path + "/open.txt")
        said = []
        for file in (ours, theirs):
            try:
                said.append(len(file.read()))
            except OSError as error:
                said.append(error.errno)
        assert said[0] == said[1], said
    until(lambda: outcome(through + "/open.txt") == "ENOENT", "it is gone")


@check
def a_file_unlinked_while_it_is_open_stays_readable_and_leaves_nothing():
    write(through + "/mine.txt", "mine")
    with open(through + "/mine.txt") as file:
        os.unlink(through + "/mine.txt")
        assert file.read() == "mine"
    until(lambda: not [name for name in os.listdir(server.path) if name.startswith(".nfs")], "no silly name is left")


@check
def other_users_have_the_rights_that_nfs_gives_them():
    """NFS has no POSIX ACLs. The kernel that asks for them must not be told so in a way that shuts others out."""
    os.chmod(nodbfs.dir, 0o755)
    os.mkdir(server.path + "/theirs")
    write(server.path + "/theirs/secret.txt", "root's")
    os.chmod(server.path + "/theirs/secret.txt", 0o600)
    os.chown(server.path + "/theirs", 1000, 1000)
    script = "cd theirs; echo '[1]' >x.nodb; echo '[2]' >t; mv t x.nodb; cat x.nodb; stat -c %u x.nodb; cat secret.txt"
    other = ("setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "sh", "-c", script)
    said = subprocess.run(other, cwd=through, capture_output=True, text=True, check=False)
    assert said.stdout == "[2]\n1000\n", said
    assert said.stderr.count("Permission denied") == said.stderr.count("\n") == 1, said


main()
