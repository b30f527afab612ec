"""An NFS 4.2 server in the kernel of the checks, and its mounts on hosts of that kernel."""

import os
import subprocess

from hosts import SERVER
from kit import sh

# as in the field: attributes are believed for 5 to 60 s
OPTIONS = "vers=4.2,hard,acregmin=5,acregmax=60,acdirmin=5,acdirmax=60"


class Server:
    """Exports an ext4 of its own to all hosts."""

    def __init__(self, options="rw,no_root_squash,no_subtree_check,sync,fsid=0"):
        self.path = "/srv/export"
        with open("/tmp/export.img", "wb") as image:
            image.truncate(200 << 20)
        sh("mkfs.ext4", "-q", "/tmp/export.img")
        os.makedirs(self.path, exist_ok=True)
        sh("mount", "-o", "loop", "/tmp/export.img", self.path)
        os.makedirs("/var/lib/nfs/v4recovery", exist_ok=True)
        with open("/etc/exports", "w") as exports:
            exports.write(f"{self.path} 10.0.0.0/24({options})\n")
        for name in ("etab", "rmtab"):
            open("/var/lib/nfs/" + name, "w").close()
        sh("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
        self.start()
        # no client of an earlier server has anything to reclaim
        with open("/proc/fs/nfsd/v4_end_grace", "w") as file:
            file.write("Y\n")

    def start(self):
        # how long a restarted server waits for its clients, and how long one may be silent
        for name in ("nfsv4leasetime", "nfsv4gracetime"):
            with open("/proc/fs/nfsd/" + name, "w") as file:
                file.write("10\n")
        sh("exportfs", "-ra")
        # it also asks the portmapper, which only NFS 3 needs and is not there
        mountd = ["rpc.mountd", "--foreground", "--no-udp", "-N", "3"]
        self.mountd = subprocess.Popen(mountd, stderr=subprocess.DEVNULL)
        sh("rpc.nfsd", "--no-udp", "-N", "3", "-V", "4.2", "4")

    def stop(self):
        sh("rpc.nfsd", "0")
        self.mountd.terminate()
        self.mountd.wait()


def mount(host):
    """The server's export on a host; where."""
    path = f"/tmp/{host.name}"
    os.makedirs(path)
    sh(*host.within, "mount", "-t", "nfs4", "-o", OPTIONS, SERVER + ":/", path)
    return path
