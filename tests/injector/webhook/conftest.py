"""The fixtures of the webhook's server."""

from tests.injector.webhook_server import (
    client,
    events,
    metrics,
    pair,
    patience,
    records,
    watcher,
)

__all__ = ["client", "events", "metrics", "pair", "patience", "records", "watcher"]
