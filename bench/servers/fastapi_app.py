"""FastAPI, as in its documentation for an endpoint that blocks."""

from typing import Any

from fastapi import FastAPI  # type: ignore[import-not-found, unused-ignore]
from work import reply

app = FastAPI()


@app.post("/")  # type: ignore[untyped-decorator, unused-ignore]
def endpoint(message: dict[str, Any]) -> dict[str, Any]:
    return reply(message)
