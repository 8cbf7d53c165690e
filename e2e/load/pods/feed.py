"""Sends messages to a queue without end, and takes results from another.

Prints `sent ID SECONDS` when the broker has confirmed a message, and `result ID MESSAGE-ID
SECONDS`. Of POISON messages, one is poison, and one has to be tried again. SIGUSR1: the next
message exhausts the memory. SIGUSR2: send no more; when all have a result or should have none,
print `dead ID REASON` for each dead letter, and `end`.
"""

import asyncio
import itertools
import json
import os
import signal
import time
from typing import Any

import aio_pika
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError

BURST, PAUSE, POISON = 20, 0.7, 100
ROUTE = {"actors": ["first", "second", "results"], "current": 0}
ERRORS = (AMQPError, ChannelInvalidStateError, OSError, TimeoutError)


class Feed:
    def __init__(self) -> None:
        self.exhaust, self.stop = asyncio.Event(), asyncio.Event()
        self.waiting: set[str] = set()
        self.numbers = itertools.count()

    def make(self) -> "tuple[str, bytes]":
        number = next(self.numbers)
        payload: dict[str, Any] = {"id": f"m{number}"}
        if number % POISON == POISON - 1:
            payload["poison"] = True
        elif number % POISON == POISON // 2:
            payload["again"] = True
        elif self.exhaust.is_set():
            payload["exhaust"] = True
            self.exhaust.clear()
        if "poison" not in payload:
            self.waiting.add(payload["id"])
        return payload["id"], json.dumps({"payload": payload, "route": ROUTE}).encode()

    async def send(self) -> None:
        """Send bursts; a message that was not confirmed is sent again."""
        left: list[tuple[str, bytes]] = []
        while left or not self.stop.is_set():
            try:
                async with await connect() as connection:
                    channel = await connection.channel(on_return_raises=True)
                    while left or not self.stop.is_set():
                        left = left or [self.make() for _ in range(BURST)]
                        while left:
                            await publish(channel, *left[0])
                            print("sent", left.pop(0)[0], time.time(), flush=True)
                        await asyncio.sleep(PAUSE)
            except ERRORS:
                await asyncio.sleep(0.5)

    async def receive(self) -> None:
        """Take results until all have arrived and no more are sent."""
        while not (self.stop.is_set() and not self.waiting):
            try:
                async with await connect() as connection:
                    queue = await (await connection.channel()).get_queue("results")
                    while not (self.stop.is_set() and not self.waiting):
                        message = await queue.get(fail=False)
                        if message is None:
                            await asyncio.sleep(0.05)
                            continue
                        name = json.loads(message.body)["payload"]["id"]
                        print("result", name, message.message_id, time.time(), flush=True)
                        await message.ack()
                        self.waiting.discard(name)
            except ERRORS:
                await asyncio.sleep(0.5)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.exhaust.set)
        loop.add_signal_handler(signal.SIGUSR2, self.stop.set)
        await declare()
        await asyncio.gather(self.send(), self.receive())
        async with await connect() as connection:
            channel = await connection.channel()
            for name in ("first.dead", "second.dead"):
                queue = await channel.get_queue(name)
                while (letter := await queue.get(fail=False, no_ack=True)) is not None:
                    dead = json.loads(letter.body)["payload"]["id"]
                    print("dead", dead, letter.headers.get("x-asya-message"), flush=True)
        print("end", flush=True)
        await asyncio.Event().wait()


async def connect() -> Any:
    return await aio_pika.connect(os.environ["AMQP_URL"] + "?heartbeat=10", timeout=5)


async def declare() -> None:
    while True:
        try:
            async with await connect() as connection:
                channel = await connection.channel()
                for name in ("first", "second", "results"):
                    await channel.declare_queue(name, durable=True)
                return
        except ERRORS:
            await asyncio.sleep(0.5)


async def publish(channel: Any, name: str, body: bytes) -> None:
    message = aio_pika.Message(body, message_id=name, delivery_mode=2)
    exchange = channel.default_exchange
    await exchange.publish(message, routing_key="first", mandatory=True, timeout=5)


if __name__ == "__main__":
    asyncio.run(Feed().run())
