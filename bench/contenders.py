"""Who is measured: how each server is started and which protocol its clients speak."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

SERVERS = Path(__file__).parent / "servers"
RUNTIME = Path(__file__).parents[1] / "runtime" / "asya_runtime.py"

FRAMES, HTTP, GRPC = "frames", "http", "grpc"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One server. `{socket}` in its command and environment stands for the socket's path."""

    name: str
    label: str
    command: tuple[str, ...]
    protocol: str = FRAMES
    environment: dict[str, str] = field(default_factory=dict)


def _file(name: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, str(SERVERS / name), "{socket}", *words)


def _uvicorn(app: str) -> tuple[str, ...]:
    module = (sys.executable, "-m", "uvicorn", "--uds", "{socket}", "--app-dir", str(SERVERS))
    return (*module, "--no-access-log", "--log-level", "error", app)


def _runtime(**settings: str) -> dict[str, str]:
    return {"ASYA_HANDLER": "work.predict", "ASYA_SOCKET_PATH": "{socket}", **settings}


BASE = "echo"
# A single thread serves one client after another; for several at once it needs one each.
BASE_FOR_MANY = "echo-threads"
# The limit of what a faster JSON library can gain, for a single client.
BASE_FAST = "echo-orjson"

CONTENDERS = (
    Contender(name=BASE, label="bare echo", command=_file("bare_echo.py")),
    Contender(
        name=BASE_FOR_MANY, label="bare echo, threads", command=_file("bare_echo.py", "threads")
    ),
    Contender(name=BASE_FAST, label="bare echo, orjson", command=_file("bare_echo.py", "orjson")),
    Contender(
        name="asya",
        label="asya-runtime",
        command=(sys.executable, str(RUNTIME)),
        environment=_runtime(),
    ),
    Contender(
        name="asya-orjson",
        label="asya-runtime, orjson",
        command=(sys.executable, str(RUNTIME)),
        environment=_runtime(ASYA_JSON="orjson"),
    ),
    Contender(name="asyncio", label="asyncio streams", command=_file("asyncio_streams.py")),
    Contender(
        name="uvicorn",
        label="uvicorn + Starlette",
        command=_uvicorn("starlette_app:app"),
        protocol=HTTP,
    ),
    Contender(
        name="fastapi",
        label="uvicorn + FastAPI",
        command=_uvicorn("fastapi_app:app"),
        protocol=HTTP,
    ),
    Contender(name="aiohttp", label="aiohttp", command=_file("aiohttp_app.py"), protocol=HTTP),
    Contender(name="grpc", label="grpcio", command=_file("grpc_app.py"), protocol=GRPC),
)
BY_NAME = {contender.name: contender for contender in CONTENDERS}
