"""A bare ASGI application that sends back the body: uvicorn is measured and nothing else."""

from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body, more = bytearray(), scope["type"] == "http"
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    size = str(len(body)).encode()
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(body)})
