"""A sidecar for RabbitMQ: messages from a queue to the actor, results to the next queue."""
