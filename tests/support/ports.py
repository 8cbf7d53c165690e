"""Ports of this machine that no other process of the tests is given."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import socket
from collections.abc import Iterator
from itertools import cycle, islice

# Below the ports that the kernel chooses (from 32768 on), for connections and for port 0.
_FIRST, _LAST, _BLOCK = 10_000, 30_000, 200


def free_port() -> int:
    """A port that stays free until the caller uses it.

    A port of the kernel's choice is free for a moment only: it may give it to the next connection.
    """
    for port in islice(_reserve(os.getpid()), _BLOCK):
        if is_free(port):
            return port
    raise AssertionError("all ports of this process are in use")


def is_free(port: int) -> bool:
    """Whether a server could bind a port now."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
        return True
    return False


@functools.cache
def _reserve(_process: int) -> Iterator[int]:
    """The ports of a block, again and again; a block belongs to one process until that ends."""
    firsts = list(range(_FIRST, _LAST, _BLOCK))
    random.shuffle(firsts)
    for first in firsts:
        owner = socket.socket(socket.AF_UNIX)
        try:
            owner.bind(f"\0asya-runtime-tests-ports-{first}")
        except OSError:
            owner.close()
        else:
            _owners.append(owner)
            return cycle(range(first, first + _BLOCK))
    raise AssertionError("other processes have all blocks of ports")


_owners: list[socket.socket] = []
