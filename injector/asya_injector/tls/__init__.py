"""Certificates: issued, renewed, and reloaded while the server runs."""
