"""The annotations that users can set: names, formats of their values, validation."""
