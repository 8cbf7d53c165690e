"""A small web application that tells which language a text is written in."""
