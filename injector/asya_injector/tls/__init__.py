"""Certificates: made, rotated, and exchanged while the server runs."""
