"""What `make release` builds, without an engine and a registry."""
