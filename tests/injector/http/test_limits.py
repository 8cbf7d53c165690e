"""What callers may use: connections, bytes and turns, shared by address."""

import asyncio

import pytest
from asya_injector.http.limits import Connection, Connections, Turns


class Opened:
    """A table of connections that records which ones it closes."""

    def __init__(self, **limits: int) -> None:
        self.table = Connections(**limits)
        self.closed: list[str] = []
        self._now = 0.0

    def open(self, name: str) -> Connection:
        """Open a connection called after its address and a letter."""
        self._now += 1
        connection = Connection(name[:-1], close=lambda: self.closed.append(name), now=self._now)
        self.table.add(connection)
        return connection


@pytest.mark.parametrize(
    ("names", "busy", "closed"),
    [
        # The oldest one of the address with most.
        ("1a 1b 2a 1c", "", "1a"),
        ("1a 2a 2b 2c", "", "2a"),
        ("1a 2a 2b 1b", "", "1a"),
        ("1a 2a 3a 4a", "", "1a"),
        # Those that are waiting for a request before those that are being answered.
        ("1a 1b 1c 1d", "1a", "1b"),
        ("1a 1b 1c 1d", "1a 1b", "1c"),
        ("1a 1b 1c 2a", "1a 1b 1c", "1a"),
        # Many callers cannot close the connection of another address.
        ("2a 1a 1b 1c 1d 1e", "", "1a 1b 1c"),
    ],
)
def test_closes_the_oldest_connection_of_the_busiest_address(
    names: str, busy: str, closed: str
) -> None:
    opened = Opened(max_connections=3)
    for name in names.split():
        opened.open(name).busy = name in busy.split()
    assert opened.closed == closed.split()
    assert len(opened.table) == 3
    assert opened.table.closed_early == len(opened.closed)


def test_counts_only_open_connections() -> None:
    opened = Opened(max_connections=3)
    for _ in range(10):
        opened.table.remove(opened.open("1a"))
    assert (opened.closed, len(opened.table)) == ([], 0)


@pytest.mark.parametrize(
    ("sizes", "closed"),
    [
        ({"1a": 60, "2a": 40}, ""),
        ({"1a": 60, "2a": 41}, "1a"),
        ({"1a": 40, "1b": 30, "2a": 45}, "1a"),
        ({"1a": 101}, "1a"),
        ({"1a": 30, "1b": 30, "1c": 30, "2a": 50}, "1a 1b"),
        ({"1a": 90, "2a": 90, "3a": 90}, "1a 2a"),
    ],
)
def test_closes_the_largest_connection_of_the_address_with_most_bytes(
    sizes: dict[str, int], closed: str
) -> None:
    opened = Opened(max_bytes=100)
    for name, size in sizes.items():
        opened.table.resize(opened.open(name), size)
    assert sorted(opened.closed) == closed.split()


def test_bytes_are_given_back() -> None:
    opened = Opened(max_bytes=100)
    kept = opened.open("1a")
    for _ in range(10):
        opened.table.resize(kept, 60)
        opened.table.resize(kept, 10)
        other = opened.open("2a")
        opened.table.resize(other, 90)
        opened.table.remove(other)
        opened.table.resize(other, 90)  # it is closed
    assert opened.closed == []


async def take(turns: Turns, name: str, order: list[str]) -> None:
    await turns.acquire(name[:-1])
    order.append(name)
    await asyncio.sleep(0)
    turns.release()


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ("1a 1b 1c", "1a 1b 1c"),
        ("1a 1b 1c 1d 2a", "1a 1b 2a 1c 1d"),
        ("1a 1b 1c 2a 2b 3a", "1a 1b 2a 3a 1c 2b"),
    ],
)
async def test_addresses_get_turns_in_rotation(names: str, order: str) -> None:
    turns, taken = Turns(1), list[str]()
    await asyncio.gather(*(take(turns, name, taken) for name in names.split()))
    assert taken == order.split()
    await turns.acquire("4")  # a turn is left
    assert turns._waiting == {}


async def test_at_most_so_many_have_a_turn() -> None:
    turns, running, most = Turns(3), 0, 0

    async def run() -> None:
        nonlocal running, most
        await turns.acquire("1")
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        turns.release()

    await asyncio.gather(*(run() for _ in range(20)))
    assert most == 3


@pytest.mark.parametrize("when", ["waiting", "turn given", "turn released"])
async def test_a_cancelled_caller_takes_no_turn(when: str) -> None:
    turns = Turns(1)
    await turns.acquire("1")
    waiting = asyncio.create_task(turns.acquire("2"))
    await asyncio.sleep(0)
    if when == "turn given":
        turns.release()
    waiting.cancel()
    if when == "turn released":  # before the cancelled task runs
        turns.release()
    await asyncio.wait([waiting])
    assert turns._waiting == {}
    if when == "waiting":
        turns.release()
    async with asyncio.timeout(5):
        await turns.acquire("3")
    assert turns._free == 0
