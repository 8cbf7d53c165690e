"""The servers that are compared: how each is started, and which protocol its clients speak."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

SERVERS = Path(__file__).parent / "servers"
RUNTIME = Path(__file__).parents[1] / "runtime" / "asya_runtime.py"

FRAMES, HTTP, GRPC = "frames", "http", "grpc"
ONE, MANY = "one client", "many clients"
BASELINE, RUNTIME_LABEL = "bare echo", "asya-runtime"
BARE_BYTES = "bare socket"


class ServerError(Exception):
    """A server did not start, or did not answer as expected."""


@dataclass(frozen=True)
class Contender:
    """One server.

    command, environment: `{socket}` stands for the path of the socket.
    only_for: the number of clients that the server is made for; empty for any number.
    form: how bytes are sent, where that is compared.
    """

    label: str
    command: tuple[str, ...]
    protocol: str = FRAMES
    environment: dict[str, str] = field(default_factory=dict)
    only_for: str = ""
    form: str = "raw"


def _script(name: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, str(SERVERS / name), "{socket}", *words)


def _uvicorn(app: str) -> tuple[str, ...]:
    module = (sys.executable, "-m", "uvicorn", "--uds", "{socket}", "--app-dir", str(SERVERS))
    return (*module, "--no-access-log", "--log-level", "error", app)


def _runtime(label: str, form: str = "raw", **settings: str) -> Contender:
    settings = {"ASYA_HANDLER": "work.predict", "ASYA_SOCKET_PATH": "{socket}"} | settings
    return Contender(label, (sys.executable, str(RUNTIME)), environment=settings, form=form)


CONTENDERS = (
    # The baseline serves one client after another; several clients need a thread each.
    Contender(BASELINE, _script("bare_echo.py"), only_for=ONE),
    Contender(BASELINE, _script("bare_echo.py", "threads"), only_for=MANY),
    Contender(f"{BASELINE}, orjson", _script("bare_echo.py", "orjson"), only_for=ONE),
    _runtime(RUNTIME_LABEL, ASYA_JSON="stdlib"),
    _runtime(f"{RUNTIME_LABEL}, orjson", ASYA_JSON="orjson"),
    Contender("asyncio streams", _script("asyncio_streams.py")),
    Contender("uvicorn + Starlette", _uvicorn("starlette_app:app"), HTTP),
    Contender("uvicorn + FastAPI", _uvicorn("fastapi_app:app"), HTTP),
    Contender("aiohttp", _script("aiohttp_app.py"), HTTP),
    Contender("gRPC", _script("grpc_app.py"), GRPC),
)
LABELS = tuple(dict.fromkeys(contender.label for contender in CONTENDERS))
# The same bytes, in each way to send them
_BASE64 = {"form": "base64", "ASYA_HANDLER": "work.predict_base64"}
BYTES_CONTENDERS = (
    Contender(BARE_BYTES, _script("bare_bytes.py")),
    _runtime(f"{RUNTIME_LABEL}, attachment", "attachment"),
    _runtime(f"{RUNTIME_LABEL}, base64", ASYA_JSON="stdlib", **_BASE64),
    _runtime(f"{RUNTIME_LABEL}, base64, orjson", ASYA_JSON="orjson", **_BASE64),
    Contender("uvicorn, raw body", _uvicorn("raw_asgi:app"), HTTP),
    Contender("gRPC, bytes", _script("grpc_app.py", "bytes"), GRPC),
)
