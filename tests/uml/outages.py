"""An NFS server that restarts or cannot be reached, under saves from two hosts: they wait or fail, nothing that was
acknowledged is lost, and all heals (promises 4 to 6 and 9)."""

import threading
import time

import roads
from counted import counted
from hosts import SERVER, Host
from kit import Nodbfs, Redis, check, document, main, read, until
from nfs_server import Server, mount

KEYS = ("--key-root", "/wc1/runs/ab/abc", "--lease-ttl", "3s")

server = Server()
alpha, beta = Host("alpha"), Host("beta")
redis = Redis(SERVER)
a = Nodbfs(mount(alpha), *KEYS, redis=redis.url, within=alpha.within)
b = Nodbfs(mount(beta), *KEYS, redis=redis.url, within=beta.within)


@check
def saves_wait_for_a_server_that_restarts():
    def outage(_savers):
        server.stop()
        time.sleep(1)
        server.start()

    return counted((a, b), server.path, "/restart.nodb", outage)


@check
def saves_wait_for_a_server_that_is_not_reached():
    """Both hosts lose the server, and Redis, for longer than their leases last."""

    def outage(_savers):
        for host in (alpha, beta):
            host.unplug()
        time.sleep(8)
        for host in (alpha, beta):
            host.plug_in()

    return counted((a, b), server.path, "/unplugged.nodb", outage)


@check
def a_host_that_was_cut_off_overwrites_nothing_when_it_is_back():
    """Only one of them: the other one takes the lock over and goes on."""

    def outage(savers):
        for _ in range(3):
            alpha.unplug()
            time.sleep(4)
            savers[1].goes_on()
            alpha.plug_in()
            savers[0].goes_on()

    return counted((a, b), server.path, "/cut_off.nodb", outage)


@check
def a_reader_that_hangs_with_the_server_gets_the_document_when_it_is_back():
    roads.by_close(a.path + "/read.nodb", document(1))
    got = []
    alpha.unplug()
    reader = threading.Thread(target=lambda: got.append(read(a.path + "/read.nodb")), daemon=True)
    reader.start()
    reader.join(3)
    alpha.plug_in()
    until(lambda: got == [1], "the reader is answered", 60)


main()
