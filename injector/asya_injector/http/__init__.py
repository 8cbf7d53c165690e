"""Connections and request bodies of the webhook's port: TLS and HTTP, within limits."""
