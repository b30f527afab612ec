"""Hosts within one kernel: each a network and a host name of its own, joined by a bridge that is the server's."""

from kit import sh

SERVER = "10.0.0.1"


class Host:
    """`within` is the prefix of a command that runs on it."""

    made = 0

    def __init__(self, name):
        if not Host.made:
            sh("ip", "link", "add", "br0", "type", "bridge")
            sh("ip", "addr", "add", SERVER + "/24", "dev", "br0")
            sh("ip", "link", "set", "br0", "up")
        Host.made += 1
        self.name, self.link, inside = name, f"to-{name}", ("ip", "-n", name)
        sh("ip", "netns", "add", name)
        sh("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", name)
        sh("ip", "link", "set", self.link, "master", "br0", "up")
        sh(*inside, "addr", "add", f"10.0.0.{10 + Host.made}/24", "dev", "eth0")
        sh(*inside, "link", "set", "eth0", "up")
        sh(*inside, "link", "set", "lo", "up")
        # a file keeps the namespace of the host name
        uts = f"/run/uts-{name}"
        open(uts, "w").close()
        sh("unshare", f"--uts={uts}", "hostname", name)
        self.within = ("nsenter", f"--net=/run/netns/{name}", f"--uts={uts}")

    def trouble(self, *netem):
        """From now on the network does this to packets, both ways."""
        sh("tc", "qdisc", "replace", "dev", self.link, "root", "netem", *netem)
        sh("tc", "-n", self.name, "qdisc", "replace", "dev", "eth0", "root", "netem", *netem)

    def no_trouble(self):
        sh("tc", "qdisc", "del", "dev", self.link, "root")
        sh("tc", "-n", self.name, "qdisc", "del", "dev", "eth0", "root")

    def unplug(self):
        """As with a server that hangs: nobody is told."""
        self.trouble("loss", "100%")

    def plug_in(self):
        self.no_trouble()
