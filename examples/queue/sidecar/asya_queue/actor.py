"""The actor's socket: messages are pipelined over a few connections, so that batches form."""

import asyncio
from collections import deque

PREFIX = 4
WAIT = 0.2  # seconds between attempts to connect


class Connection:
    """One connection. Replies come in the order of its messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.unanswered: deque[asyncio.Future[bytes]] = deque()
        self.is_open = True

    async def call(self, frame: bytes) -> bytes:
        """The reply to a message; raises ConnectionError if the connection ends without one."""
        if not self.is_open:
            raise ConnectionResetError("the actor closed the connection")
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.unanswered.append(reply)
        self.writer.writelines([len(frame).to_bytes(PREFIX, "big"), frame])
        return await reply

    async def receive(self) -> None:
        """Hand out replies until the stream ends."""
        try:
            while True:
                size = int.from_bytes(await self.reader.readexactly(PREFIX), "big")
                reply = await self.reader.readexactly(size)
                self.unanswered.popleft().set_result(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.is_open = False
            self.writer.close()
            for waiting in self.unanswered:
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError("the actor closed the connection"))


class Actor:
    """All connections to the actor. They are made together, and again when one is lost."""

    def __init__(self, path: str, connections: int) -> None:
        self.path, self.count = path, connections
        self.connections: list[Connection] = []
        self.receivers: list[asyncio.Task[None]] = []
        self.lost = asyncio.Event()

    async def connect(self) -> None:
        """Wait until the socket answers: it appears when the handler is ready."""
        await self.close()
        self.lost.clear()
        while len(self.connections) < self.count:
            try:
                self.connections.append(Connection(*await asyncio.open_unix_connection(self.path)))
            except OSError:
                await asyncio.sleep(WAIT)
        for connection in self.connections:
            receiver = asyncio.create_task(connection.receive())
            receiver.add_done_callback(lambda _: self.lost.set())
            self.receivers.append(receiver)

    async def call(self, frame: bytes) -> bytes:
        """The reply to a message, over the connection with the fewest unanswered ones."""
        if not self.connections:
            raise ConnectionResetError("not connected to the actor")
        return await min(self.connections, key=lambda each: len(each.unanswered)).call(frame)

    async def close(self) -> None:
        """Close all connections; messages without a reply end with a ConnectionError."""
        for receiver in self.receivers:
            receiver.cancel()
        await asyncio.gather(*self.receivers, return_exceptions=True)
        for connection in self.connections:
            connection.writer.close()
        self.connections, self.receivers = [], []
