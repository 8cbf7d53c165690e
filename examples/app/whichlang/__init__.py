"""A small web application that recognizes the language of a text."""
