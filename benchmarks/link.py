"""A slow link between two network namespaces: so many bits a second, a delay each way, and a queue that has an end.

Linux has `netem` for this, which many kernels come without. So the two ends are TUN devices here, and packets go from
one to the other through this program, each when its turn and its delay have passed. A packet that finds the queue of
its direction full is dropped, as a router does it. Needs root, as namespaces do.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from benchmarks.stand import Place

BITS_PER_SECOND = 10_000_000
ROUND_TRIP_SECONDS = 0.05
QUEUE_BYTES = 125_000
"""A tenth of a second's worth, twice what is on its way: a modest router."""

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1500
_links = itertools.count(1)


class Direction:
    """Packets that are on their way from one device to the other."""

    def __init__(self, target: int, *, bits_per_second: float, delay_seconds: float, queue_bytes: int) -> None:
        self._target = target
        self._seconds_per_byte = 8 / bits_per_second
        self._delay_seconds = delay_seconds
        self._queue_seconds = queue_bytes * self._seconds_per_byte
        self._is_free_at = 0.0
        self._travelling: deque[tuple[float, bytes]] = deque()

    def enter(self, packet: bytes, now: float) -> bool:
        """Queue a packet; false where there was no room for it."""
        start = max(now, self._is_free_at)
        if start - now > self._queue_seconds:
            return False
        self._is_free_at = start + len(packet) * self._seconds_per_byte
        self._travelling.append((self._is_free_at + self._delay_seconds, packet))
        return True

    def next_at(self) -> float | None:
        """When the next packet arrives, if there is one."""
        return self._travelling[0][0] if self._travelling else None

    def arrived(self, now: float) -> Iterator[bytes]:
        """Every packet that is due."""
        while self._travelling and self._travelling[0][0] <= now:
            yield self._travelling.popleft()[1]

    def deliver(self, now: float) -> None:
        """Write what is due to the device."""
        for packet in self.arrived(now):
            with contextlib.suppress(OSError):  # the device is down, or its queue is full: the packet is lost
                os.write(self._target, packet)


def relay(first: int, second: int) -> None:
    """Carry packets both ways until the process is ended."""

    def direction(target: int) -> Direction:
        delay = ROUND_TRIP_SECONDS / 2
        return Direction(target, bits_per_second=BITS_PER_SECOND, delay_seconds=delay, queue_bytes=QUEUE_BYTES)

    directions = {first: direction(second), second: direction(first)}
    while True:
        due = [at for at in (one.next_at() for one in directions.values()) if at is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        readable, _, _ = select.select(list(directions), [], [], timeout)
        for device in readable:
            with contextlib.suppress(BlockingIOError):
                while True:
                    directions[device].enter(os.read(device, 65_536), time.monotonic())
        now = time.monotonic()
        for one in directions.values():
            one.deliver(now)


def _open_device(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def unavailable() -> str:
    """Why there can be no link here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return ""


@contextlib.contextmanager
def slow_link() -> Iterator[tuple[Place, Place]]:
    """Two places with the link between them, for the length of the block."""
    number = f"{os.getpid()}-{next(_links)}"
    names = [f"moorline-{end}-{number}" for end in ("near", "far")]
    places = [Place(name, f"10.111.0.{last}") for last, name in enumerate(names, 1)]
    devices = [f"ml{number}{end}" for end in ("n", "f")]
    with contextlib.ExitStack() as cleanup:
        for name in names:
            _ip("netns", "add", name)
            cleanup.callback(_ip, "netns", "del", name)
        process = subprocess.Popen([sys.executable, "-m", "benchmarks.link", *devices], stdout=subprocess.PIPE)
        cleanup.callback(_end, process)
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the slow link did not start")
        for device, place, other in zip(devices, places, reversed(places), strict=True):
            _ip("link", "set", "dev", device, "netns", place.namespace)
            _ip("-n", place.namespace, "link", "set", "dev", "lo", "up")
            peer = ("peer", other.address)
            _ip("-n", place.namespace, "address", "add", place.address, *peer, "dev", device)
            _ip("-n", place.namespace, "link", "set", "dev", device, "mtu", str(_MTU), "up")
        yield places[0], places[1]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def main() -> None:
    """Make the two devices, say so, and carry packets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.link", description=__doc__)
    parser.add_argument("devices", nargs=2)
    first, second = (_open_device(name) for name in parser.parse_args().devices)
    print("ready", flush=True)
    relay(first, second)


if __name__ == "__main__":
    main()
