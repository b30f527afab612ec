"""Redis at the end of a bad network, two hosts that save through it: a save succeeds or is refused, within its limits, and
what was acknowledged is there (promises 5, 6 and 9)."""

import os
import time

from counted import counted
from hosts import SERVER, Host
from kit import Nodbfs, Redis, check, main

SECONDS = 8

hosts = [Host("alpha"), Host("beta")]
redis = Redis(SERVER)
os.mkdir("/tmp/source")
mounts = [
    Nodbfs("/tmp/source", "--key-root", "/wc1/runs/ab/abc", "--lease-ttl", "3s", redis=redis.url, within=host.within)
    for host in hosts
]


def troubled(name, *netem):
    """Saves in a network of such trouble, and without it again."""

    def happens(_savers):
        for host in hosts:
            host.trouble(*netem)
        time.sleep(SECONDS)
        for host in hosts:
            host.no_trouble()

    return counted(mounts, "/tmp/source", f"/{name}.nodb", happens)


@check
def a_slow_network_slows_saves_down_and_no_more():
    return troubled("slow", "delay", "40ms", "20ms", "distribution", "normal")


@check
def a_network_that_loses_and_reorders_packets_loses_no_save():
    return troubled("lossy", "delay", "10ms", "5ms", "reorder", "25%", "loss", "15%", "duplicate", "5%")


@check
def answers_later_than_the_limits_are_refusals():
    count = troubled("late", "delay", "2200ms", "300ms")
    assert count.refused > 0, count
    return count


@check
def packets_damaged_on_the_way_lose_no_save():
    return troubled("damaged", "corrupt", "10%")


@check
def plain_files_notice_nothing_of_it():
    hosts[0].trouble("loss", "100%")
    for number in range(100):
        with open(f"{mounts[0].path}/plain{number}", "w") as file:
            file.write("x")
        os.rename(f"{mounts[0].path}/plain{number}", f"{mounts[0].path}/renamed{number}")
    hosts[0].no_trouble()
    assert len([name for name in os.listdir("/tmp/source") if name.startswith("renamed")]) == 100


main()
