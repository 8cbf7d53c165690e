"""Limits on what callers may use: connections, memory, and turns.

Anybody in the cluster can connect, and the API server presents no client certificate, so callers
are told apart by their address only. Where something runs short, the address that uses most of it
yields first.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable

# Memory for requests that are being received and answers that are being sent: the largest review
# twice.
_MAX_BYTES = 16 << 20
# An API server handles at most 600 requests at a time by default, and few of them are reviews.
_MAX_CONNECTIONS = 512


class Connection:
    """An accepted connection.

    close: ends it at once.
    busy: a request is being answered.
    since: when it was opened or last answered.
    size: bytes of the request or of its answer that are in memory.
    """

    def __init__(self, address: str, *, close: Callable[[], object], now: float) -> None:
        self.address = address
        self.close = close
        self.busy = False
        self.since = now
        self.size = 0
        self._limit: asyncio.TimerHandle | None = None

    def limit_first_request(self, seconds: float | None) -> None:
        """Close it unless a whole request arrives within seconds; None: no limit."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if seconds is not None:
            self._limit = asyncio.get_running_loop().call_later(seconds, self._close)

    def _close(self) -> None:
        self.close()  # as it is by then

    def use(self) -> None:
        """A whole request has arrived."""
        self.busy = True
        self.limit_first_request(None)


class Connections:
    """The open connections; closes some when there are too many, or when they use too much."""

    def __init__(
        self, *, max_connections: int = _MAX_CONNECTIONS, max_bytes: int = _MAX_BYTES
    ) -> None:
        self.closed_early = 0
        self._max_connections = max_connections
        self._max_bytes = max_bytes
        self._open: dict[Connection, None] = {}  # in order
        self._size = 0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """Add a connection; if there are too many, close the one that has waited longest."""
        self._open[connection] = None
        while len(self._open) > self._max_connections:
            counts = Counter(each.address for each in self._open)
            most = max(counts.values())
            self._evict(
                min(
                    (each for each in self._open if counts[each.address] == most),
                    key=lambda each: (each.busy, each.since),
                )
            )

    def remove(self, connection: Connection) -> None:
        """Forget a connection that is closed."""
        self.resize(connection, 0)
        self._open.pop(connection, None)

    def resize(self, connection: Connection, size: int) -> None:
        """Note the bytes that a connection uses; if all use too many, close the largest."""
        if connection not in self._open:
            return
        self._size += size - connection.size
        connection.size = size
        while self._size > self._max_bytes:
            sizes: Counter[str] = Counter()
            for each in self._open:
                sizes[each.address] += each.size
            self._evict(max(self._open, key=lambda each: (sizes[each.address], each.size)))

    def _evict(self, connection: Connection) -> None:
        self.closed_early += 1
        self.remove(connection)
        connection.close()


class Turns:
    """A semaphore that callers of different addresses get in rotation."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def acquire(self, address: str) -> None:
        """Wait for a turn; `release` must follow."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(address, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was given just before
                self.release()
            elif turn in self._waiting.get(address, ()):
                self._waiting[address].remove(turn)
                if not self._waiting[address]:
                    del self._waiting[address]
            raise

    def release(self) -> None:
        """Give the turn to the next address."""
        while self._waiting:
            address = next(iter(self._waiting))
            turns = self._waiting.pop(address)
            turn = turns.popleft()
            if turns:
                self._waiting[address] = turns  # the last one now
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1
