"""A pipeline of two actors behind RabbitMQ; README.md describes it."""
