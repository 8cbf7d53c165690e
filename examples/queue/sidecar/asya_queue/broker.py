"""Queues of the broker: declare them, and publish to them with confirmation."""

from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity

from asya_queue.messages import content_type

MOST_NAMES = 1000  # of queues that are remembered


class Broker:
    """One channel, and what is known about queues."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.connection, self.channel = connection, channel
        self.existing: set[str] = set()

    async def publish(
        self, queue: str, body: bytes, source: AbstractIncomingMessage, **properties: Any
    ) -> None:
        """Publish a message that follows from another one.

        Raises DeliveryError if the broker rejects it; its subclass PublishError, without a queue.
        """
        message = aio_pika.Message(
            body,
            content_type=content_type(body),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            correlation_id=source.correlation_id or source.message_id,
            reply_to=source.reply_to,
            priority=source.priority,
            type=source.type,
            **properties,
        )
        exchange = self.channel.default_exchange
        await exchange.publish(message, routing_key=queue, mandatory=True)

    async def exists(self, queue: str) -> bool:
        """Whether a queue exists."""
        if queue not in self.existing:
            try:  # on another channel, because the broker closes it if not
                async with self.connection.channel() as channel:
                    await channel.declare_queue(queue, passive=True)
            except ChannelNotFoundEntity:
                return False
            except ChannelClosed:
                pass  # it exists, and belongs to another connection or account
            self.remember(queue)
        return True

    def remember(self, queue: str) -> None:
        """Do not ask again about a queue."""
        if len(self.existing) >= MOST_NAMES:
            self.existing.clear()
        self.existing.add(queue)

    async def declare(self, queue: str) -> None:
        """Create a queue, unless it exists; then it is used as it is."""
        if not await self.exists(queue):
            await self.channel.declare_queue(queue, durable=True)
            self.remember(queue)

    async def declare_delay(self, queue: str, seconds: int) -> str:
        """A queue from which messages return to another one after some time. Returns its name."""
        name = f"{queue}.retry-{seconds}s"
        if name not in self.existing:
            arguments: dict[str, Any] = {
                "x-queue-type": "quorum",
                "x-message-ttl": seconds * 1000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": queue,
                # These two let the broker confirm the way back, too.
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
            await self.channel.declare_queue(name, durable=True, arguments=arguments)
            self.remember(name)
        return name
