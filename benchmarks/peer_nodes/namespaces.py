"""Machines on one: network namespaces on a bridge, each with an address of its own."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_NET = "10.213.77"


@contextmanager
def machines(number: int) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of this machine, and (namespace, address) of the others. Needs root."""
    tag = f"fl{os.getpid() % 100_000}"
    with ExitStack() as stack:
        bridge = f"{tag}br"
        _ip("link", "add", bridge, "type", "bridge")
        stack.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{_NET}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        made = []
        for index in range(number):
            name, outer, address = f"{tag}n{index}", f"{tag}v{index}", f"{_NET}.{index + 2}"
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", outer, "master", bridge, "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            made.append((name, address))
        yield f"{_NET}.1", made


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
