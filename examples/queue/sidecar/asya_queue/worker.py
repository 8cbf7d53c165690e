"""Messages from the queue to the actor, and results to the next queue.

A message is acknowledged after its reply has arrived and the broker has confirmed everything that
follows from it. Until then the broker keeps it, and delivers it again if this process ends.
"""

import asyncio
import logging
import signal
import ssl
import sys
import uuid
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import (
    AMQPError,
    ChannelInvalidStateError,
    DeliveryError,
    InvalidFrameError,
    PublishError,
)
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from asya_queue.actor import Actor
from asya_queue.broker import Broker
from asya_queue.messages import forward, read_reply, to_frame

if TYPE_CHECKING:
    from asya_queue.__main__ import Settings

# Delays of messages that are tried again; each has a queue. A longer one is the longest of these.
DELAYS = (1, 2, 5, 10, 30, 60, 120, 300, 600)
# Headers that end with the queue that they are about: those of this sidecar and of the broker.
OURS = ("x-asya-", "x-death", "x-first-death", "x-last-death", "x-delivery", "x-acquired")
FULL_PAUSE = 1  # seconds before a message is tried again whose results have no place
# Characters of an error in a header or log line; headers have to fit into one frame.
LONGEST_TEXT = 2000
LONGEST_PAUSE = 15  # seconds between attempts to reach the broker
BROKER_ERRORS = (AMQPError, ChannelInvalidStateError, OSError, ssl.SSLError, TimeoutError)

MESSAGES = Counter(
    "asya_queue_messages", "Messages by outcome: ok, retried, dead, returned", ["outcome"]
)
PUBLISHED = Counter("asya_queue_published", "Messages published for the next actors")
IN_FLIGHT = Gauge("asya_queue_in_flight", "Messages that are being handled")
SECONDS = Histogram("asya_queue_seconds", "From the arrival of a message to its acknowledgement")
CONNECTED = Gauge("asya_queue_connected", "Whether there is a connection (0 or 1)", ["to"])


def say(text: str) -> None:
    """Print one line, whatever a message contains."""
    line = text[:LONGEST_TEXT].encode("unicode_escape").decode()
    print("asya-queue:", line, file=sys.stderr, flush=True)


class Stop:
    """The request to take no more messages, and whether it is done."""

    def __init__(self) -> None:
        self.requested, self.is_idle = asyncio.Event(), asyncio.Event()
        self.is_idle.set()

    async def serve(self, path: str) -> None:
        """Treat a connection to a socket as a request; it closes when no messages are taken."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requested.set()
            await self.is_idle.wait()
            writer.close()

        try:
            await asyncio.start_unix_server(answer, path)
        except OSError as error:  # with hostNetwork, another pod may have it
            say(f"--stop does not work: {describe(error)}")


class RejectedError(Exception):
    """A message that cannot go on; the argument is the error of a reply."""


class Worker:
    """Consumes over one channel, while the actor's socket answers."""

    def __init__(self, settings: "Settings", broker: Broker, stop: Stop) -> None:
        self.settings, self.broker, self.stop = settings, broker, stop
        self.channel = broker.channel
        self.actor = Actor(settings.socket_path, settings.connections)
        self.in_flight: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Consume until told to stop; raises one of BROKER_ERRORS if the channel closes."""
        await self.channel.set_qos(prefetch_count=self.settings.prefetch)
        names = (self.settings.queue, self.settings.next_queue, self.settings.dead_letters)
        for name in filter(None, names):
            await self.broker.declare(name)
        queue = await self.channel.get_queue(self.settings.queue, ensure=False)
        deleted = asyncio.Event()
        underlay = await self.channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _: deleted.set())
        end = asyncio.ensure_future(
            first(self.stop.requested.wait(), self.channel.closed(), deleted.wait())
        )
        try:
            while not end.done():
                await first(self.actor.connect(), asyncio.shield(end))
                if not end.done():
                    await self.consume(queue, end)
        finally:
            end.cancel()
            await self.actor.close()
        if not self.stop.requested.is_set():
            raise AMQPError("the queue was deleted" if deleted.is_set() else "channel closed")

    async def consume(self, queue: AbstractQueue, end: asyncio.Future[None]) -> None:
        """Take messages until the end, or until a connection to the actor is lost."""
        self.stop.is_idle.clear()
        tag = await queue.consume(self.take)
        CONNECTED.labels("actor").set(1)
        say(f"takes messages from {queue.name!r}")
        await first(self.actor.lost.wait(), asyncio.shield(end))
        if self.stop.requested.is_set() or not end.done():
            await queue.cancel(tag)
            say("takes no more messages: " + ("the actor is gone", "told to stop")[end.done()])
        CONNECTED.labels("actor").set(0)
        self.stop.is_idle.set()
        await self.finish()

    async def finish(self) -> None:
        """Wait for the messages in flight; those of a closed channel cannot be acknowledged."""
        while self.in_flight and not self.channel.is_closed:
            await first(asyncio.wait(self.in_flight.copy()), self.channel.closed())
        for task in self.in_flight:
            task.cancel()

    async def take(self, message: AbstractIncomingMessage) -> None:
        """Handle a message; the broker keeps it if that is interrupted."""
        task = asyncio.current_task()
        assert task
        self.in_flight.add(task)
        try:
            with IN_FLIGHT.track_inprogress(), SECONDS.time():
                outcome = await self.handle(message)
            MESSAGES.labels(outcome).inc()
        except BROKER_ERRORS as error:
            say(f"message {message.message_id}: not acknowledged: {describe(error)}")
        finally:
            self.in_flight.discard(task)

    async def handle(self, message: AbstractIncomingMessage) -> str:
        """Handle a message to its acknowledgement; returns the outcome."""
        try:
            reply = await self.actor.call(to_frame(message.body))
        except ConnectionError:
            # Give it back, but not to this consumer, which is about to be cancelled.
            await self.stop.is_idle.wait()
            await message.nack(requeue=True)
            return "returned"
        outcome = "ok"
        try:
            try:
                await self.publish_results(message, reply)
            except RejectedError as failure:
                outcome = await self.fail(message, failure.args[0])
        except DeliveryError as error:
            say(f"message {message.message_id}: the broker rejects what follows: {error}")
            await asyncio.sleep(FULL_PAUSE)
            await message.nack(requeue=True)
            return "returned"
        await message.ack()
        return outcome

    async def publish_results(self, message: AbstractIncomingMessage, frame: bytes) -> None:
        """Publish what follows from a reply, and wait for the broker's confirmations."""
        try:
            reply = read_reply(frame)
        except ValueError as error:
            raise RejectedError(fatal("bad_reply", str(error))) from None
        if reply["status"] != "ok":
            raise RejectedError(reply)
        last = self.settings.next_queue or message.reply_to or ""
        try:
            results = list(forward(message.body, reply["result"], last))
        except (ValueError, RecursionError) as error:
            text = f"the results cannot be sent on: {error}"
            raise RejectedError(fatal("bad_route", text)) from None
        for queue in {queue for queue, _ in results}:
            if not await self.broker.exists(queue):
                raise RejectedError(no_queue(queue))
        largest = max((len(body) for _, body in results), default=0)
        if largest > self.settings.max_size:  # the broker would close the channel
            text = f"a result of {largest} bytes: more than MAX_SIZE={self.settings.max_size}"
            raise RejectedError(fatal("too_large", text))
        headers = {
            name: value for name, value in message.headers.items() if not name.startswith(OURS)
        }
        publications = []
        for number, (queue, body) in enumerate(results):
            # A message that is handled twice has results with equal identifiers.
            identifier = message.message_id and str(
                uuid.uuid5(uuid.NAMESPACE_OID, f"{message.message_id} {queue} {number}")
            )
            publications.append(
                self.broker.publish(queue, body, message, message_id=identifier, headers=headers)
            )
        outcomes = await asyncio.gather(*publications, return_exceptions=True)
        for (queue, _), outcome in zip(results, outcomes, strict=True):
            if isinstance(outcome, PublishError):  # it has been deleted
                self.broker.existing.clear()
                raise RejectedError(no_queue(queue))
            if outcome is not None:
                raise outcome
        PUBLISHED.inc(len(results))

    async def fail(self, message: AbstractIncomingMessage, error: dict[str, Any]) -> str:
        """Publish a message for another attempt, or as a dead letter; returns the outcome."""
        attempts = message.headers.get("x-asya-attempts", 0)
        attempts = attempts + 1 if isinstance(attempts, int) else 1
        headers = {
            **message.headers,
            "x-asya-attempts": attempts,
            "x-asya-queue": self.settings.queue,
            **{
                f"x-asya-{key}": shorten(error[key])
                for key in ("error", "type", "message")
                if key in error
            },
        }
        text = f"{error['error']} ({error.get('type', '-')}): {error['message']}"
        if error["severity"] == "recoverable" and attempts <= self.settings.retries:
            wanted = error.get("retry_after", 2 ** min(attempts - 1, 10))
            delay = next((each for each in DELAYS if each >= wanted), DELAYS[-1])
            queue, outcome = await self.broker.declare_delay(self.settings.queue, delay), "retried"
            say(f"message {message.message_id}: again in {delay} s (attempt {attempts}): {text}")
        else:
            queue, outcome = self.settings.dead_letters, "dead"
            say(f"message {message.message_id}: moved to {queue!r}: {text}")
        await self.broker.publish(
            queue, message.body, message, message_id=message.message_id, headers=headers
        )
        return outcome


def shorten(text: Any) -> str:
    """The text of an error, as a header can hold it."""
    return str(text)[:LONGEST_TEXT].encode(errors="backslashreplace").decode()


def fatal(error: str, text: str) -> dict[str, str]:
    """An error that another attempt does not change."""
    return {"error": error, "severity": "fatal", "message": text}


def no_queue(queue: str) -> dict[str, str]:
    """The error of a message whose next queue does not exist (yet)."""
    text = f"the next queue, {queue!r}, does not exist"
    return {"error": "no_queue", "severity": "recoverable", "message": text}


async def first(*awaitables: Awaitable[Any]) -> None:
    """Wait for the first of some awaitables, and cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


def describe(error: BaseException) -> str:
    """An error as one line."""
    if isinstance(error, InvalidFrameError):  # the broker closed the connection at its start
        return "rejected: does the virtual host exist, and may this user use it?"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def run(settings: "Settings", stop_socket: str) -> None:
    """Connect, consume, and connect again after a failure, until a signal or a request to stop."""
    # What these two log is said here too, in one line.
    for library in ("aiormq.connection", "aio_pika.connection"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    serve_metrics(settings.metrics_port)
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.requested.set)
    await stop.serve(stop_socket)
    address = urlsplit(settings.url)
    name = f"{address.hostname}:{address.port or (5672, 5671)[address.scheme == 'amqps']}"
    pause, now = 0.5, asyncio.get_running_loop().time
    while not stop.requested.is_set():
        began = now()
        try:
            connection = await aio_pika.connect(settings.url, timeout=10)
            async with connection:
                CONNECTED.labels("broker").set(1)
                channel = await connection.channel(on_return_raises=True)
                await Worker(settings, Broker(connection, channel), stop).run()
        except BROKER_ERRORS as error:
            if stop.requested.is_set():
                break
            is_new = now() - began > LONGEST_PAUSE
            pause = 1 if is_new else min(pause * 2, LONGEST_PAUSE)
            say(f"broker {name}: {describe(error)}; trying again in {pause:.0f} s")
            await first(stop.requested.wait(), asyncio.sleep(pause))
        finally:
            CONNECTED.labels("broker").set(0)
            stop.is_idle.set()
    say("stopped")


def serve_metrics(port: int) -> None:
    """Serve Prometheus metrics, over IPv6 too where there is IPv6."""
    for address in ("::", "0.0.0.0") if port else ():
        try:
            start_http_server(port, addr=address)
            return
        except OSError as error:
            failure = error
    if port:
        say(f"no metrics: port {port}: {failure}")
