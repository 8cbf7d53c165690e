"""The sidecar of examples/queue, with a no-op in place of the actor: it returns the payload."""

import asyncio
import os

from asya_queue import __main__, worker


class NoOp:
    """Answers at once, without a socket."""

    def __init__(self, *_: object) -> None:
        self.lost = asyncio.Event()

    async def connect(self) -> None:
        """Nothing to connect to."""

    async def call(self, frame: bytes) -> bytes:
        """The reply that the echo handler makes: the message without its braces and zero byte."""
        return b'{"status":"ok","result":' + frame[len(b'{"payload": ') : -2] + b"}"

    async def close(self) -> None:
        """Nothing to close."""


if __name__ == "__main__":
    vars(worker)["Actor"] = NoOp
    settings = __main__.read_settings(dict(os.environ))
    asyncio.run(worker.run(settings, __main__.name_stop_socket(settings.socket_path)))
