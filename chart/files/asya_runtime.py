#!/usr/bin/env python3
"""Serve one Python function of this container on a Unix socket.

    ASYA_HANDLER=my_app.handler.predict python3 asya_runtime.py

README.md beside this file is the contract for clients. A frame has the same form in both
directions; a connection carries any number of them, and each complete frame gets exactly
one reply, whatever the handler does:

     0         4                    4 + N
    +---------+--------------------+
    | N       | N bytes            |    N: big-endian unsigned 32 bits
    +---------+--------------------+    N bytes: one JSON object, UTF-8

Map of this file; each section uses only those above it:

    Settings            environment variables, validated once: `Settings`
    State               the records that the sections below share: `Message`, `State`
    Replies             error codes and error replies: `error_reply`, `describe`
    JSON                message bytes to objects, results to reply bytes: `make_codec`
    Memory errors       recognize them and free the memory: `make_classify`, `empty_caches`
    Handler             import it and call it in any form: `load_handler`, `make_call`
    Answer              one message to one reply, never an exception: `make_answer`
    Socket file         listen, and publish when ready: `open_listener`
    Signals             SIGTERM, and warnings about slow calls: `start_watch`
    Connections         one generator per connection: `serve_connection`
    Server              the epoll loop, accepting, draining: `serve`
    Command line        serve, --check, --ready, --call: `main`

Design: an epoll loop on the main thread moves bytes. Each connection is a generator that
yields what it waits for. The handler also runs on the main thread, where it was imported
and where sqlite, signal, asyncio and contextvars expect it; worker threads exist only with
ASYA_CONCURRENCY above 1. Functions share state through closures and small records. Modules
are imported where they are needed, because `--ready` is a probe and must be cheap. Sockets
are those of `_socket`: socket.py adds 6 ms to the start and some time to each accept, and
user code may replace its classes (gevent does).
"""

import errno
import os
import sys
import time

if sys.version_info < (3, 9):  # a readable line, not a SyntaxError: this file parses on 3.6
    sys.stderr.write(
        "asya_runtime: requires Python 3.9 or newer; this is %s (%s)\n"
        % (sys.version.split()[0], sys.executable)
    )
    sys.exit(78)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import collections
    from _socket import socket as Socket  # noqa: N812
    from collections.abc import Callable, Generator, Iterator, Mapping
    from typing import Any, TypeVar, Union

    T = TypeVar("T")
    Bytes = Union[bytes, bytearray, memoryview]
    Action = Callable[[], None]
    Request = dict[str, object]
    Call = Callable[[Request], object]
    Decode = Callable[["Message"], object]
    Encode = Callable[["Message"], Bytes]
    Answer = Callable[["Message"], Bytes]
    Conversation = Generator[int, Any, None]

EXIT_CONFIG = 78  # EX_CONFIG: a setting, the socket path or the handler is wrong
EXIT_POISONED = 70  # EX_SOFTWARE: the GPU context is lost; only a new process helps

# --- Settings: one table, read once


class StartupError(Exception):
    """The process cannot start. The text is one line: what is wrong and how to fix it."""


def make_parser(
    rule: str, pattern: str, read: "Callable[[str], Any]" = str, low: float = 0, high: float = 0
) -> "Callable[[str], Any]":
    """Return a parser for texts that match `pattern`; `high`: the value is from `low` to `high`."""

    def parse(text: str) -> "Any":
        import re

        value = read(text) if re.fullmatch(pattern, text) else None
        if value is None or (high and not low <= value <= high):
            raise ValueError("must be " + rule)
        return value

    return parse


def make_integer_parser(low: int, high: int) -> "Callable[[str], Any]":
    """Return a parser for whole numbers from `low` to `high`."""
    return make_parser("a whole number from %d to %d" % (low, high), "[0-9]{1,20}", int, low, high)


def make_seconds_parser(rule: str, low: float) -> "Callable[[str], Any]":
    """Return a parser for finite seconds from `low`; `rule` says that in words."""
    number = r"(?i)[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
    return make_parser("a number of seconds, " + rule, number, float, low, sys.float_info.max)


def parse_path(text: str) -> str:
    """Return the path if a socket can have it."""
    if not os.path.isabs(text) or text.endswith("/"):
        raise ValueError("must be the absolute path of a file")
    if len(os.fsencode(text)) > 107:
        raise ValueError("must be at most 107 bytes long, the kernel's limit for sockets")
    return text


parse_handler = make_parser(
    "module.path.function or module.Class.method",
    r".+\..+",
    lambda text: text if all(map(str.isidentifier, text.split("."))) else None,
)
parse_boolean = make_parser(
    "true, 1, yes, false, 0 or no",
    "(?i)true|1|yes|false|0|no",
    lambda text: text.lower() in ("true", "1", "yes"),
)
parse_mode = make_parser("octal, 0 to 0777", "0*[0-7]{1,3}", lambda text: int(text, 8))

# variable, default, parser; the attribute of Settings is the name in lower case without ASYA_
SETTINGS: "tuple[tuple[str, str, Callable[[str], object]], ...]" = (
    ("ASYA_HANDLER", "", parse_handler),
    ("ASYA_SOCKET_PATH", "/tmp/sockets/app.sock", parse_path),  # noqa: S108
    ("ASYA_INCLUDE_METADATA", "false", parse_boolean),
    ("ASYA_CHUNK_SIZE", "4096", make_integer_parser(1, 16777216)),
    ("ASYA_HANDLER_TIMEOUT", "0", make_seconds_parser("at least 0", 0)),
    ("ASYA_ENABLE_OOM_DETECTION", "true", parse_boolean),
    ("ASYA_CUDA_CLEANUP_ON_OOM", "true", parse_boolean),
    ("ASYA_SOCKET_MODE", "0660", parse_mode),
    ("ASYA_CONCURRENCY", "1", make_integer_parser(1, 1024)),
    ("ASYA_MAX_MESSAGE_SIZE", "4294967295", make_integer_parser(1, 4294967295)),
    ("ASYA_READ_TIMEOUT", "60", make_seconds_parser("above 0", 5e-324)),
    ("ASYA_JSON", "stdlib", make_parser("stdlib, orjson or auto", "stdlib|orjson|auto")),
)


class Settings:
    """The settings of the environment, validated: one attribute for each row of the table."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, environ: "Mapping[str, str]", only: str = "") -> None:
        for variable, default, parse in SETTINGS:
            if only and variable != only:
                continue
            text = environ.get(variable, "").strip() or default
            if not text:
                raise StartupError("%s is not set; set it to module.function" % variable)
            try:
                value = parse(text)
            except ValueError as error:
                raise StartupError("%s=%s: %s" % (variable, text[:200], error)) from None
            setattr(self, variable[5:].lower(), value)


# --- State: the records that the sections below share


class Message:
    """One message in work.

    Code that consumes a part sets it to None as early as it can: the memory may be needed for
    the next part.
    """

    __slots__ = ("body", "result")
    body: "Bytes | None"  # as received
    result: "Any"  # what the handler returned


class State:
    """The state of the process, shared by signals, answers and the server."""

    __slots__ = ("forked", "poisoned", "stopping", "wake")

    def __init__(self) -> None:
        self.stopping = False  # SIGTERM or SIGINT was received
        self.poisoned = False  # the GPU context is lost
        self.forked = False  # this is a child that user code forked
        self.wake: "Action | None" = None  # interrupts the server's wait; None before it serves


def get_attribute(thing: object, name: str) -> "Any":
    """Return an attribute or None, whatever the object's class does when asked."""
    try:
        return getattr(thing, name, None)
    except BaseException:
        return None


def log(text: str) -> None:
    """Write one line to fd 2: user code may have replaced or closed `sys.stderr`."""
    try:
        os.write(2, ("asya_runtime: %s\n" % text).encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody reads it


# --- Replies

# code: (severity, retry_after)
CODES: "dict[str, tuple[str, int | None]]" = {
    "oom_error": ("recoverable", 30),
    "cuda_oom_error": ("recoverable", 60),
    "processing_error": ("fatal", None),
    "invalid_json": ("fatal", None),
    "connection_error": ("fatal", None),
}
MESSAGE_LIMIT = 2000
FRAME_LIMIT = 4294967295
# Built while there is memory, for when nothing else can be built.
OUT_OF_MEMORY = (
    b'{"status":"error","error":"oom_error","message":"out of memory","type":"MemoryError",'
    b'"severity":"recoverable","retry_after":30}'
)
UNPRINTABLE = (
    b'{"status":"error","error":"processing_error",'
    b'"message":"the handler raised an exception that cannot be printed","severity":"fatal"}'
)


def error_reply(
    code: str, message: str, kind: str = "", severity: str = "", retry_after: object = None
) -> bytes:
    """Build an error reply. `severity` and `retry_after` override those of the code."""
    import json

    usual, seconds = CODES[code]
    if retry_after is None and severity in ("", usual):
        retry_after = seconds
    fields: "dict[str, object]" = {"status": "error", "error": code}
    fields["message"] = message[:MESSAGE_LIMIT]
    fields.update(type=kind or None, severity=severity or usual, retry_after=retry_after)
    present = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(present, separators=(",", ":")).encode("ascii")


def describe(code: str, error: BaseException, prefix: str = "") -> bytes:
    """Build the reply for an exception. Its `severity` and `retry_after`, if valid, win."""
    kind, severity = type(error).__name__, get_attribute(error, "severity")
    retry_after = get_attribute(error, "retry_after")
    if not isinstance(severity, str) or severity not in ("recoverable", "fatal"):
        severity = ""  # other libraries use these names for other things
    if type(retry_after) not in (int, float) or not 0 <= retry_after <= sys.float_info.max:
        retry_after = None
    message = prefix + (get_text(error) or kind)
    return error_reply(code, message, kind, severity, retry_after)


def get_text(error: BaseException) -> str:
    """Return the text of an exception, "" if it has none. Raises only MemoryError."""
    try:
        return str(error)
    except MemoryError:
        raise
    except BaseException:
        return ""


# --- JSON


def make_codec(choice: str, threads: bool) -> "tuple[Decode, Encode, Encode]":
    """Return `decode(message)`, `encode(message)` and the latter for large messages.

    `decode` consumes the body and returns the request. `encode` consumes the result and returns
    the complete success reply.
    """
    import json
    import json.encoder

    def reject_constant(word: str) -> object:
        raise ValueError("%s is not JSON" % word)

    def parse_integer(digits: str) -> int:
        if len(digits) > 4300:
            raise ValueError("integer of %d digits" % len(digits))
        return int(digits)

    # Early 3.9 and 3.10 have no limit, and need time quadratic in the number of digits
    parse_int = None if hasattr(sys, "set_int_max_str_digits") else parse_integer
    decoder = json.JSONDecoder(parse_constant=reject_constant, parse_int=parse_int)
    encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
    scan = decoder.scan_once  # type: ignore[attr-defined]
    parents: "dict[int, object]" = {}  # of the value being encoded: detects circular references

    def make_chunks(value: object, level: int) -> "tuple[str, ...]":
        return (encoder.encode(value),)

    escape = json.encoder.encode_basestring_ascii
    c_make_encoder = get_attribute(json.encoder, "c_make_encoder")
    form = (None, ":", ",", False, False, False)
    if c_make_encoder and not threads:  # once: `encoder.encode` makes one per call, twice the cost
        make_chunks = c_make_encoder(parents, encoder.default, escape, *form)

    @bound_recursion
    def decode(message: Message) -> object:
        text = str(message.body, "utf-8")  # type: ignore[arg-type]
        message.body = None
        try:
            value, end = scan(text, 0)
        except StopIteration:
            return decoder.decode(text)  # accepts leading white space, or raises
        if end == len(text) or not text[end:].strip(" \t\r\n"):
            return value
        return decoder.decode(text)  # raises "Extra data"

    @bound_recursion
    def encode(message: Message) -> bytes:
        try:
            text = "".join(make_chunks({"status": "ok", "result": message.result}, 0))
        except BaseException:
            parents.clear()
            raise
        message.result = None
        return text.encode("ascii")

    @bound_recursion
    def encode_large(message: Message) -> "Bytes":
        """Escape long strings piece by piece: holds one of them, its copy and the reply."""
        long: "list[str]" = []

        def defer(text: str) -> str:
            if len(text) < PIECE or type(text) is not str:
                return escape(text)
            long.append(text)
            return "\0"  # never part of JSON

        encode_outline = c_make_encoder({}, encoder.default, defer, *form)
        outline = "".join(encode_outline({"status": "ok", "result": message.result}, 0)).split("\0")
        message.result = None
        reply = bytearray()
        for part in outline:
            reply += part.encode("ascii")
            if long:
                text = long.pop(0)
                reply += b'"'
                for at in range(0, len(text), PIECE):
                    reply += escape(text[at : at + PIECE])[1:-1].encode("ascii")
                reply += b'"'
        return reply

    @bound_recursion
    def encode_orjson(message: Message) -> bytes:
        try:
            reply: bytes = orjson.dumps({"status": "ok", "result": message.result}, None, option)
        except TypeError:
            return encode(message)  # large integers, other keys; or it raises the right error
        # orjson writes NaN as null: where there may be one, the standard library decides
        if count_down_parts(message.result, 64) >= 0 or reply.rfind(b"null") < 0:  # faster than in
            return reply
        return encode(message)

    def decode_orjson(message: Message) -> object:
        body, message.body = message.body, None
        return orjson.loads(body)  # type: ignore[arg-type]

    standard = (decode, encode, encode_large if c_make_encoder else encode)
    if choice == "stdlib":
        return standard
    try:
        import orjson  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        if choice == "auto":
            return standard
        reason = "ASYA_JSON=orjson: orjson is not installed; install it or set ASYA_JSON=auto"
        raise StartupError(reason) from None
    option = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS
    option |= orjson.OPT_PASSTHROUGH_DATETIME
    return decode_orjson, encode_orjson, encode_orjson


def count_down_parts(value: object, budget: int) -> int:
    """Return what is left of `budget` after all parts of a value; negative for a float.

    Also negative when the budget is used up: the answer would cost more than it saves.
    """
    budget -= 1
    if type(value) is dict or type(value) is list:
        for item in value.values() if type(value) is dict else value:
            if budget < 0:
                return -1
            budget = count_down_parts(item, budget)
        return budget
    return budget if value is None or type(value) in (str, int, bool) else -1


def bound_recursion(function: "Callable[[Any], T]") -> "Callable[[Any], T]":
    """Bound recursion in C: before 3.12 its limit is the one that user code may have raised."""
    if sys.version_info >= (3, 12):
        return function

    def call(argument: object) -> "T":
        limit = sys.getrecursionlimit()
        if limit <= 5000:
            return function(argument)
        sys.setrecursionlimit(5000)
        try:
            return function(argument)
        finally:
            sys.setrecursionlimit(limit)

    return call


def find_unencodable(value: object, parents: "tuple[int, ...]" = ()) -> str:
    """Name the first value that is not JSON-serializable, by its path: `.items[3].score: nan`."""
    if value is None or isinstance(value, (str, int)):
        return ""
    if isinstance(value, float):
        return "" if value - value == 0 else ": %r" % value
    if id(value) in parents:
        return ": contains itself"
    if len(parents) >= 400:
        return ": nested too deeply"
    if isinstance(value, dict):
        form, items = ".%s", value.items()
    elif isinstance(value, (list, tuple)):
        form, items = "[%s]", enumerate(value)  # type: ignore[assignment]
    else:
        name = type(value).__name__
        return ": " + name + ("; make the handler `async def`" if name == "coroutine" else "")
    for key, item in items:
        if key is not None and not isinstance(key, (str, int, float)):
            return ": key of type " + type(key).__name__
        found = find_unencodable(item, parents + (id(value),))
        if found:
            return form % (key,) + found
    return ""


# --- Memory errors: recognized by class name and text, without importing a framework

# The GPU context is lost: every later GPU call of this process fails.
STICKY = r"""
    cuda\ error:\ (device-side|an\ illegal|unspecified|misaligned|uncorrectable|unknown\ error)
  | an\ illegal\ (memory\ access|instruction)\ was\ encountered | unspecified\ launch\ failure
  | device-side\ assert\ triggered | uncorrectable\ ecc\ error\ encountered | misaligned\ address
  | cudaerror(illegal(address|instruction)|assert|launchfailure|misalignedaddress|eccuncorrectable)
  | cuda_error_(illegal_(address|instruction)|assert|launch_failed|misaligned_address|ecc_uncorr)
  | (cublas|cudnn)_status_execution_failed | ncclunhandledcudaerror
  | cannot\ re-initialize\ cuda\ in\ forked\ subprocess
"""
# GPU memory is exhausted. The word "CUDA" or "memory" alone proves nothing.
GPU = r"""
    (cuda|hip|xpu|mps\ backend)\ out\ of\ memory | (cuda|hip)(\ driver)?\ error:\ out\ of\ memory
  | cuda\ failure\ 2:\ out\ of\ memory | cuda\ failed\ with\ error\ out\ of\ memory
  | cumem\w*\ failed:\ out\ of\ memory | cuda_error_out_of_memory
  | (cuda|hip)errormemoryallocation | hiperroroutofmemory
  | (cublas|cudnn|cusolver|cusparse|hipblas|rocblas)_status_alloc_failed
  | cublas_status_not_initialized\W+when\ calling\W+cublascreate
  | bad_alloc:\ (out_of_memory:\ )?(rmm|cuda) | bad_alloc:\ out_of_memory:
  | pt_devmem\ allocation\ failed | internal\ assert\ failed\ at\W.*cudacachingallocator
  | resource_exhausted:\ (out\ of\ memory\ while\ trying\ to|failed\ to)\ allocate
  | oom\ when\ allocating\ tensor.*device:(gpu|xpu|tpu)
  | device:(gpu|xpu|tpu)\S*\ failed\ to\ allocate\ memory
  | (gpu=|cuda).*failed\ to\ allocate\ memory\ for\ requested\ buffer
  | no\ available\ memory\ for\ the\ cache\ blocks | less\ than\ desired\ gpu\ memory\ utilization
  | larger\ than\ the\ available\ kv\ cache\ memory
"""
# Host memory is exhausted, reported by something other than a MemoryError.
HOST = r"""
    defaultcpuallocator:\ (can't\ allocate|not\ enough)\ memory
  | resource_exhausted:\ out\ of\ memory\ allocating | oom\ when\ allocating\ tensor.*device:cpu
  | device:cpu\S*\ failed\ to\ allocate\ memory
  | failed\ to\ allocate\ memory\ for\ requested\ buffer | onnxruntimeerror.*std::bad_alloc
  | available\ memory\ of\ \d+\ is\ smaller\ than\ requested
"""

GPU_CLASSES = ("torch.OutOfMemoryError", "cupy.OutOfMemoryError", "pycuda.MemoryError")


def walk_chain(error: BaseException) -> "Iterator[BaseException]":
    """Yield an exception and what caused it, as the interpreter would print them."""
    todo: "list[Any]" = [error]
    seen: "set[int]" = set()
    while todo and len(seen) < 1000:
        link = todo.pop()
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        group = get_attribute(link, "exceptions")  # of an ExceptionGroup, or its backport
        todo.extend(group if isinstance(group, tuple) else ())
        if not get_attribute(link, "__suppress_context__"):
            todo.append(get_attribute(link, "__context__"))
        todo.append(get_attribute(link, "__cause__"))


def make_classify() -> "Callable[[BaseException], str]":
    """Return a function: an exception to `sticky`, `cuda_oom_error`, `oom_error` or ""."""
    import re

    flags = re.IGNORECASE | re.VERBOSE | re.DOTALL
    is_sticky, is_gpu, is_host = (re.compile(text, flags).search for text in (STICKY, GPU, HOST))

    def classify(error: BaseException) -> str:
        kind = ""
        for link in walk_chain(error):
            text = get_text(link)[:20000]
            classes = {
                "%s.%s" % (str(base.__module__).partition(".")[0], base.__name__)
                for base in type(link).__mro__
            }
            if is_sticky(text) or "vllm.EngineDeadError" in classes:
                return "sticky"
            if is_gpu(text) or not classes.isdisjoint(GPU_CLASSES):
                kind = "cuda_oom_error"  # before MemoryError, which CuPy's class is too
            elif kind or not (isinstance(link, (MemoryError, OSError)) or is_host(text)):
                continue
            elif not isinstance(link, OSError) or link.errno == errno.ENOMEM:
                kind = "oom_error"
        return kind

    return classify


def release_frames(error: BaseException) -> None:
    """Release what the frames of the failed call hold: their locals are the large tensors."""
    import traceback  # loaded by `make_answer`: there is no memory to load it now

    for link in list(walk_chain(error)):
        trace = get_attribute(link, "__traceback__")
        BaseException.with_traceback(link, None)  # assigning fails if the class is frozen
        traceback.clear_frames(trace)


def empty_caches() -> None:
    """Release cached GPU memory of frameworks that are loaded, without initializing any."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")

    def empty_torch(device: str) -> None:
        part = get_attribute(torch, device)
        if part is not None and part.is_initialized():
            part.empty_cache()
            getattr(part, "ipc_collect", int)()

    def empty_mps() -> None:
        if torch is not None and torch.backends.mps.is_available():
            torch.mps.empty_cache()

    def empty_cupy() -> None:
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()

    actions: "list[Action]" = [lambda: empty_torch("cuda"), lambda: empty_torch("xpu")]
    for action in (*actions, empty_mps, empty_cupy):
        try:
            action()
        except Exception as error:  # it can run out of memory too
            log("emptying a GPU cache failed: %s" % type(error).__name__)


def log_traceback(error: BaseException, title: str) -> None:
    """Log an exception as the interpreter would, without the frames of this file."""
    try:
        import traceback

        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals is globals():
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        log(title + "\n" + "".join(lines)[-20000:].rstrip())
    except BaseException:
        log(title + "; its traceback cannot be printed")


# --- Handler

COROUTINE, ASYNC_GENERATOR = 0x80, 0x200  # of inspect, whose import costs 10 ms
GENERATOR = type(_ for _ in ())


def load_handler(name: str) -> "Callable[[Any], Any]":
    """Import `module.path.function`, or `module.Class.method` of one new instance."""
    import importlib

    def fail(error: BaseException, reason: str) -> StartupError:
        log_traceback(error, reason)
        return StartupError("%s: %s: %s" % (reason, type(error).__name__, get_text(error)[:300]))

    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:cut])
        try:
            thing = importlib.import_module(path)
            break
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if not (path + ".").startswith(missing + "."):
                reason = "%s imports %s, which is not installed in this image" % (path, missing)
                raise fail(error, reason) from None
            if cut == 1:
                raise StartupError(explain_missing(name, missing)) from None
        except BaseException as error:  # SystemExit of a script too
            raise fail(error, "importing %s failed" % path) from None
    for part in parts[cut:]:
        if isinstance(thing, type):
            try:
                thing = thing()
            except BaseException as error:
                raise fail(error, "instantiating %s failed" % path) from None
        if not hasattr(thing, part):
            raise StartupError("%s has no %s; it has %s" % (path, part, list_contents(thing)))
        thing, path = getattr(thing, part), path + "." + part
    if isinstance(thing, type):
        reason = "%s is a class; set ASYA_HANDLER to one of its methods: %s"
        raise StartupError(reason % (path, list_contents(thing)))
    if not callable(thing):
        raise StartupError("%s is not callable: it is of type %s" % (path, type(thing).__name__))
    return thing  # type: ignore[no-any-return, unused-ignore]


def list_contents(thing: object) -> str:
    """List what can be called in a module or object, and the modules of a package."""
    names = [n for n in dir(thing) if n[0] != "_" and callable(get_attribute(thing, n))]
    for folder in get_attribute(thing, "__path__") or ():
        names += ["the module " + n[:-3] for n in sorted(os.listdir(folder)) if n.endswith(".py")]
    return ", ".join(names[:20]) or "nothing to call"


def explain_missing(name: str, missing: str) -> str:
    """Say where `missing` was searched, and which directory nearby contains it."""
    hint = ""
    for root in sys.path[:20]:
        try:
            folders = [entry.path for entry in os.scandir(root or ".") if entry.is_dir()]
        except OSError:
            continue  # an archive, or missing
        for folder in folders[:200]:
            if any(os.path.exists(os.path.join(folder, missing + end)) for end in (".py", "")):
                hint = hint or "; it is in %s: add that to PYTHONPATH" % folder
    searched = ", ".join(path or "." for path in sys.path)
    return "ASYA_HANDLER=%s: no module %s%s; searched %s" % (name, missing, hint, searched)


def make_call(handler: "Callable[[Any], Any]", threads: bool) -> "Call":
    """Return a plain function that calls the handler: sync, async or generator."""
    function = handler
    while type(function).__name__ == "partial":
        function = get_attribute(function, "func")
    own_call = get_attribute(get_attribute(type(function), "__call__"), "__code__")
    flags = get_attribute(get_attribute(function, "__code__") or own_call, "co_flags") or 0
    if not flags & (COROUTINE | ASYNC_GENERATOR):
        return handler

    import asyncio

    if sys.version_info < (3, 10):  # locks made at import belong to the current loop there
        loop = asyncio.get_event_loop()
    else:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)

    async def capture(request: "Request") -> "tuple[object, BaseException | None]":
        """Return result and exception: a SystemExit that is raised would end the loop."""
        try:
            if flags & ASYNC_GENERATOR:
                return [item async for item in handler(request)], None
            return await handler(request), None
        except BaseException as error:
            return None, error

    def run_until(done: "Callable[[], bool]", run: "Callable[[], Any]") -> None:
        while not done():
            try:
                run()
            except BaseException as error:  # SystemExit in a background task of user code
                log_traceback(
                    error, "a background task stopped the event loop; restarting the loop"
                )

    def call(request: "Request") -> object:
        if threads:
            result, error = asyncio.run_coroutine_threadsafe(capture(request), loop).result()
        else:
            task = loop.create_task(capture(request))
            run_until(task.done, lambda: loop.run_until_complete(task))
            result, error = task.result()
        if error is not None:
            raise error
        return result

    if threads:
        start_thread(lambda: run_until(lambda: False, loop.run_forever))
    return call


def start_thread(work: "Callable[[], object]") -> None:
    """Start a daemon thread: the process never waits for it."""
    import threading

    size = threading.stack_size(16777216)  # for deep JSON; only what is used costs memory
    threading.Thread(target=work, daemon=True).start()
    threading.stack_size(size)


# --- Answer


def make_answer(settings: Settings, call: "Call", state: State) -> "Answer":
    """Return the function that turns a message into its reply and never raises."""
    import gc
    import traceback  # noqa: F401  # now: later, memory or file descriptors may be exhausted

    decode, encode, encode_large = make_codec(settings.json, settings.concurrency > 1)
    classify = make_classify() if settings.enable_oom_detection else lambda error: ""
    metadata = settings.include_metadata

    def fail(error: BaseException, prefix: str = "") -> "tuple[bytes, str]":
        """Build the error reply first, then release what the failed call holds."""
        reply, kind = OUT_OF_MEMORY if settings.enable_oom_detection else UNPRINTABLE, ""
        try:
            kind = classify(error)
            code = kind if kind in CODES else "processing_error"
            reply = describe(code, error, "" if kind else prefix)
            if kind in CODES:
                log("%s: %s" % (code, type(error).__name__))
            else:
                log_traceback(error, prefix or "the handler failed")
        except MemoryError:
            kind = kind or "oom_error"
        except BaseException:
            reply = UNPRINTABLE
        release_frames(error)
        return reply, kind

    def recover(kind: str) -> None:
        """Make the next call possible, or end the process if none can succeed."""
        if kind == "sticky":
            log("the GPU context of this process is lost; exiting after this reply")
            state.poisoned = True
            return
        gc.collect()
        if settings.cuda_cleanup_on_oom:
            empty_caches()

    def explain_unencodable(message: Message) -> str:
        try:
            where = find_unencodable(message.result)
        except BaseException:
            where = ": "
        return "result is not JSON-serializable at result%s; " % where

    def answer(message: Message) -> "Bytes":
        if state.poisoned:
            text = "the process is restarting"
            return error_reply("processing_error", text, "", "recoverable", 1)
        kind, step = "", "decode"
        build = encode if len(message.body) < LARGE else encode_large  # type: ignore[arg-type]
        request: "Any" = None
        try:
            request = decode(message)
            if not isinstance(request, dict):
                raise ValueError("the message is not a JSON object")
            if not isinstance(request.get("payload"), dict):
                raise ValueError('the message has no "payload" that is an object')
            if not metadata:
                request = {"payload": request["payload"]}
            step = "call"
            message.result = call(request)
            request = None  # its memory may be needed for the reply
            if type(message.result) is GENERATOR:
                message.result = list(message.result)
            step = "encode"
            reply = build(message)
            step = "send"
            if len(reply) > FRAME_LIMIT:
                raise OverflowError("reply of %d bytes exceeds the frame limit" % len(reply))
        except BaseException as error:  # SystemExit and KeyboardInterrupt are answered too
            if step == "decode" and isinstance(error, (ValueError, RecursionError)):
                return describe("invalid_json", error)
            unfit = step == "encode" and not isinstance(error, MemoryError)
            reply, kind = fail(error, explain_unencodable(message) if unfit else "")
            request = message.result = None
        if kind:  # here, where the exception is gone
            recover(kind)
        return reply

    return answer


# --- Socket file: it exists if and only if the handler serves


class SocketFile:
    """The listening socket and its file."""

    __slots__ = ("listener", "publish", "remove")

    def __init__(self, listener: "Socket", publish: "Action", remove: "Action") -> None:
        self.listener = listener
        self.publish = publish  # give the file its name
        self.remove = remove


def open_listener(path: str, mode: int) -> SocketFile:
    """Listen under a temporary name."""
    import _socket
    import fcntl
    import stat

    folder, name = os.path.split(path)
    temporary = ".asya-" + os.urandom(4).hex()
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        os.makedirs(folder, exist_ok=True)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartupError("socket directory %s: %s" % (folder, error.strerror)) from None

    def make_address(entry: str) -> str:
        plain = os.path.join(folder, entry)
        if len(os.fsencode(plain)) <= 107:
            return plain
        return "/proc/self/fd/%d/%s" % (directory, entry)  # short, however long the path is

    def get_status(entry: str) -> os.stat_result:
        return os.stat(entry, dir_fd=directory, follow_symlinks=False)

    def clear(entry: str) -> None:
        """Remove a socket without a listener. Raises StartupError for anything else there."""
        plain = os.path.join(folder, entry)
        try:
            if not stat.S_ISSOCK(get_status(entry).st_mode):
                raise StartupError("%s exists and is not a socket; refusing to replace it" % plain)
            try_to_connect(make_address(entry))
        except ConnectionRefusedError:
            os.unlink(entry, dir_fd=directory)
            return
        except FileNotFoundError:
            return
        raise StartupError("another process is serving %s" % plain)

    def run_locked(action: "Action") -> None:
        """Run under the directory's lock, so that nobody acts between a check and its change."""
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            action()
        except OSError as error:
            raise StartupError("socket %s: %s" % (path, error.strerror or error)) from None
        finally:
            fcntl.flock(directory, fcntl.LOCK_UN)

    def claim() -> None:
        clear(name)
        for entry in os.listdir(directory):
            if entry.startswith(".asya-"):
                try:
                    clear(entry)  # left by a start that was killed
                except (OSError, StartupError):
                    pass  # another start is in progress
        listener.bind(make_address(temporary))
        os.chmod(temporary, mode, dir_fd=directory)
        listener.listen(1024)
        listener.setblocking(False)

    def publish() -> None:
        clear(name)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)

    def remove() -> None:
        for entry in (temporary, name):
            try:
                if os.path.samestat(get_status(entry), claimed):
                    os.unlink(entry, dir_fd=directory)
            except OSError:
                pass  # already removed

    def close_in_child() -> None:
        listener.close()
        os.close(directory)

    run_locked(claim)
    claimed = get_status(temporary)
    os.register_at_fork(after_in_child=close_in_child)
    return SocketFile(listener, lambda: run_locked(publish), remove)


def try_to_connect(address: str) -> None:
    """Raise OSError unless a process listens there."""
    import _socket

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        pass  # the backlog is full: a process listens
    finally:
        sock.close()


# --- Signals, and warnings about slow calls: one thread


class Watch:
    """What `start_watch` offers."""

    __slots__ = ("install", "watch_call")

    def __init__(self, install: "Action", watch_call: "Callable[[Call], Call]") -> None:
        self.install = install  # the signal handlers, again after user code has run
        self.watch_call = watch_call  # wrap a call: warn while it runs over the limit


def start_watch(limit: float, state: State, abandon: "Action") -> Watch:
    """Start the thread that receives SIGTERM even while the main thread is deep in C code.

    Until the server serves, SIGTERM runs `abandon()` and exits 0; then it sets `state.stopping`.
    `limit`: seconds after which a call is slow; 0: never.
    """
    import select
    import signal
    from _thread import get_ident

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    running: "dict[object, float]" = {}  # when each call began
    received = {"thread": 0, "main": 0}  # each signal arrives on both ways
    masks: "dict[int, set[int]]" = {}  # of the threads that fork now
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal(way: str, number: int) -> None:
        received[way] += 1
        if received[way] > 1:
            os._exit(128 + number)
        if state.wake is None:
            abandon()
            os._exit(0)
        state.stopping = True
        state.wake()

    def install() -> None:
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in signals:  # on both ways: user code may take the wake-up fd
            signal.signal(number, on_signal_in_python)

    def on_signal_in_python(number: int, frame: object) -> None:
        on_signal("main", number)

    def before_fork() -> None:  # the child has a copy of our pipe: its signals would be ours
        masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def after_fork() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop(get_ident()))

    def after_fork_in_child() -> None:
        signal.set_wakeup_fd(-1)
        for number in signals:
            if signal.getsignal(number) is on_signal_in_python:
                signal.signal(number, signal.SIG_DFL)
        os.close(reader)
        os.close(writer)
        after_fork()

    def watch() -> None:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        warned: "set[object]" = set()
        while True:
            now, calls = time.monotonic(), dict(running)
            warned &= set(calls)
            for key, began in calls.items():
                if now - began >= limit and key not in warned:
                    warned.add(key)
                    log("the handler is still running after %.3g s" % (now - began))
            due = [calls[key] + limit - now for key in calls if key not in warned]
            if poll.poll(1000 * min(due, default=limit) + 1 if limit else None):
                for number in os.read(reader, 512):
                    if number in signals:
                        on_signal("thread", number)

    def watch_call(call: "Call") -> "Call":
        def watched_call(request: "Request") -> object:
            key = object()
            running[key] = time.monotonic()
            try:
                result = call(request)
                return list(result) if type(result) is GENERATOR else result
            finally:
                del running[key]

        return watched_call if limit else call

    install()
    os.register_at_fork(
        before=before_fork, after_in_parent=after_fork, after_in_child=after_fork_in_child
    )
    start_thread(watch)
    return Watch(install, watch_call)


# --- Connections

IDLE, NOW, READ, WRITE, WORKER = 0, -1, 1, 4, -2  # what a connection waits for; see below
FIRST_BUFFER = 65536  # size of the first buffer for what is larger than ASYA_CHUNK_SIZE
POOLED_BUFFER = 4194304  # buffers up to this size are used again
PIECE = 1048576  # a buffer doubles, by at most this: the allocator would keep larger ones
LARGE = 16777216  # replies to messages of this size are built with little memory


class Connection:
    """One connection: its socket, its generator and what that waits for."""

    __slots__ = ("fd", "message", "resume", "sock", "waits_for")
    resume: "Callable[[Any], int]"  # run the generator until it waits again

    def __init__(self, sock: "Socket") -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.message = Message()
        # IDLE: the next message. READ: the rest of one (EPOLLIN). WRITE: the peer to read its
        # reply (EPOLLOUT). NOW: the turn of the others. WORKER: the reply, as value of `resume`
        self.waits_for = IDLE


class BrokenStream(Exception):  # noqa: N818
    """The stream ended or stalled inside a frame: where the next one begins is unknown."""


def serve_connection(
    connection: Connection,
    settings: Settings,
    buffer_pool: "list[bytearray]",
    answer: "Answer | None",
) -> "Conversation":
    """Serve one connection from accept to close; yield what it waits for.

    Without `answer`, a worker builds the reply to `connection.message`. The pool holds one
    receive buffer for all connections: a new one would have to be zeroed and paged in.
    """
    import struct

    no_memory = OUT_OF_MEMORY if settings.enable_oom_detection else UNPRINTABLE
    length = struct.Struct(">I")
    pack, unpack = length.pack, length.unpack_from
    sock, message = connection.sock, connection.message
    chunk, recv, send, held = settings.chunk_size, sock.recv, sock.send, b""
    try:
        while True:
            if len(held) < 4:
                yield READ if held else IDLE
                try:
                    data = recv(chunk)
                except BlockingIOError:
                    continue
                if not data:
                    if held:
                        raise BrokenStream("connection closed inside a length prefix")
                    return
                held = held + data if held else data
                if len(held) < 4:
                    continue
            size = unpack(held)[0]
            end = size + 4
            if size > settings.max_message_size:
                yield from receive(sock, None, len(held[4:end]), size)
                text = "message of %d bytes exceeds the limit of %d bytes"
                limit = settings.max_message_size
                reply: "Bytes" = error_reply("connection_error", text % (size, limit))
            elif end <= len(held):
                message.body = held[4:end]
                reply = answer(message) if answer else (yield WORKER)
            else:
                buffer = buffer_pool.pop() if buffer_pool else bytearray(FIRST_BUFFER)
                buffer[: len(held) - 4] = held[4:]
                if (yield from receive(sock, buffer, len(held) - 4, size)):
                    message.body = memoryview(buffer)[:size]
                    keep = buffer if len(buffer) <= POOLED_BUFFER else None
                    del buffer  # a large one is then free while the handler runs
                    reply = answer(message) if answer else (yield WORKER)
                    message.body = None
                    if keep is not None:
                        buffer_pool[:] = [keep]
                else:
                    reply = no_memory
            held = held[end:]
            prefix = pack(len(reply))
            try:
                if len(reply) < FIRST_BUFFER:
                    sent = send(prefix + reply)
                else:  # too large to copy
                    sent = sock.sendmsg((prefix, reply))
            except BlockingIOError:
                sent = 0
            if sent < len(reply) + 4:
                yield from write(sock, prefix[sent:])
                yield from write(sock, memoryview(reply)[max(0, sent - 4) :])
            del reply
            if len(held) >= 4:
                yield NOW
    except BrokenStream as error:
        reply = error_reply("connection_error", str(error))
        try:
            send(len(reply).to_bytes(4, "big") + reply)
        except OSError:
            pass
    except OSError:
        pass  # the peer is gone: nobody reads an answer


def receive(
    sock: "Socket", buffer: "bytearray | None", got: int, size: int
) -> "Generator[int, None, bool]":
    """Receive the rest of `size` bytes into `buffer`, which grows with what has arrived.

    Returns whether all are there. Without a buffer, or out of memory, they are discarded.
    """
    while got < size:
        try:
            if buffer is None:
                count = len(sock.recv(min(size - got, FIRST_BUFFER)))
            else:
                if got == len(buffer):
                    buffer.extend(bytes(min(max(got, FIRST_BUFFER), PIECE, size - got)))
                with memoryview(buffer) as view:
                    count = sock.recv_into(view[got:size])
            if not count:
                raise BrokenStream("connection closed after %d of %d bytes" % (got, size))
            got += count
        except BlockingIOError:
            pass
        except MemoryError:
            buffer.clear()  # type: ignore[union-attr]
            buffer = None
        if got < size:
            yield READ
    return buffer is not None


def write(sock: "Socket", data: "Bytes") -> "Generator[int, None, None]":
    """Send `data` as fast as the peer reads."""
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            pass
        if data:
            yield WRITE


# --- Server

PAUSE = 1.0  # seconds without accepting, when no connection can be accepted or closed
PATIENCE = 5.0  # seconds to wait at the end for peers that do not read and for threads


def make_waker() -> "tuple[int, Action, Action, Action]":
    """Return a descriptor to poll, `wake()` that makes it readable, `clear()` and `close()`."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wake() -> None:
        try:
            os.write(writer, b"!")
        except BlockingIOError:
            pass  # it is readable

    def clear() -> None:
        os.read(reader, 4096)

    def close() -> None:
        os.close(reader)
        os.close(writer)

    return reader, wake, clear, close


def make_workers(
    limit: int, answer: "Answer", wake: "Action"
) -> "tuple[Callable[[Connection, int], None], collections.deque[tuple[Connection, Bytes]]]":
    """Prepare up to `limit` threads that answer messages while the main thread moves bytes.

    Returns `submit(connection, busy)`, which starts a thread while there are fewer than `busy`,
    and the connections whose reply is ready; each is followed by `wake()`.
    """
    import collections
    import queue

    jobs: "queue.SimpleQueue[Connection]" = queue.SimpleQueue()
    finished: "collections.deque[tuple[Connection, Bytes]]" = collections.deque()
    threads = 0

    def work() -> None:
        while True:
            connection = jobs.get()
            finished.append((connection, answer(connection.message)))
            wake()

    def submit(connection: Connection, busy: int) -> None:
        nonlocal threads
        jobs.put(connection)
        if threads < min(busy, limit):
            threads += 1
            start_thread(work)

    return submit, finished


def serve(settings: Settings, file: SocketFile, answer: "Answer", state: State) -> None:
    """Serve until the process is to end; then answer what has arrived, and return.

    All of it happens in `step`: wait for events, continue each connection that can go on with
    `advance`, accept new ones, and close those whose deadline has passed.
    """
    import _socket
    import resource
    import select

    listener, listening = file.listener, file.listener.fileno()
    poll = select.epoll()
    waking, wake, clear_wake, close_waker = make_waker()
    connections: "dict[int, Connection]" = {}  # by fd, the one quiet longest first
    deadlines: "dict[int, float]" = {}  # by fd: inside a frame; of the listener: a pause
    ready: "list[Connection]" = []  # they have their next message already
    busy: "set[int]" = set()  # a worker has their message
    buffer_pool: "list[bytearray]" = []
    limit = min(1000, max(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))

    def close_in_child() -> None:
        """In a child of user code: keep nothing open, or a dead runtime would seem alive."""
        state.forked = True
        poll.close()
        close_waker()
        for connection in connections.values():
            connection.sock.close()

    def answer_here(message: Message) -> "Bytes":
        reply = answer(message)
        if state.forked:  # the handler forked, and this is the child: it serves nobody
            os._exit(0)
        return reply

    threads = settings.concurrency > 1
    if threads:
        submit, finished = make_workers(settings.concurrency, answer_here, wake)

    def advance(connection: Connection, value: object = None) -> None:
        """Continue a connection until it waits again."""
        fd = connection.fd
        try:
            waits_for = connection.resume(value)
        except StopIteration:
            close(connection)
            return
        except MemoryError:
            log("out of memory while receiving or sending: closing a connection")
            close(connection)
            return
        before = connection.waits_for
        if waits_for == before == IDLE:  # most often: a whole message came and was answered
            return
        connection.waits_for = waits_for
        if waits_for > 0:
            deadlines[fd] = time.monotonic() + settings.read_timeout
        elif deadlines:
            deadlines.pop(fd, None)
        if waits_for == WORKER:
            poll.unregister(fd)
            busy.add(fd)
            submit(connection, len(busy))
        elif before == WORKER:
            busy.discard(fd)
            poll.register(fd, WRITE if waits_for == WRITE else READ)
        elif (waits_for == WRITE) != (before == WRITE):
            poll.modify(fd, WRITE if waits_for == WRITE else READ)
        if waits_for == NOW:
            ready.append(connection)

    def close(connection: Connection) -> None:
        deadlines.pop(connection.fd, None)
        busy.discard(connection.fd)
        del connections[connection.fd]
        connection.sock.close()

    def make_room() -> bool:
        """Close the connection that has been quiet longest, if possible one between messages."""

        def has_begun(connection: Connection) -> bool:
            try:
                waits = connection.waits_for != IDLE
                return waits or bool(connection.sock.recv(1, _socket.MSG_PEEK))
            except OSError:
                return False

        quiet = [one for one in connections.values() if one.fd not in busy]
        if quiet:
            close(next((one for one in quiet if not has_begun(one)), quiet[0]))
        return bool(quiet)

    def accept() -> bool:
        """Accept one connection; return whether there was one."""
        try:
            fd = listener._accept()[0]  # type: ignore[attr-defined]
            if fd < 3:  # user code has closed that one: its prints would go here
                reserve_std_fds()
                low = fd
                try:
                    fd = os.dup(low)
                finally:
                    os.close(low)
                    reserve_std_fds()
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: shut down, and nobody is left
                log("cannot accept a connection: %s" % error.strerror)
                if not make_room():  # only time helps, and the listener stays readable
                    poll.modify(listening, 0)
                    deadlines[listening] = time.monotonic() + PAUSE
            return False
        if len(connections) >= limit:
            make_room()
        sock.setblocking(False)  # always: user code may have set a default timeout
        connection = connections[fd] = Connection(sock)
        replier = None if threads else answer_here
        connection.resume = serve_connection(connection, settings, buffer_pool, replier).send
        poll.register(fd, READ)
        advance(connection)
        return True

    def expire(now: float, active: "set[int]") -> None:
        """Close what stalled inside a frame: late before a poll that brought nothing for it."""
        for fd in [fd for fd in deadlines if deadlines[fd] <= now and fd not in active]:
            if fd == listening:
                del deadlines[fd]
                poll.modify(fd, READ)
                continue
            connection = connections[fd]
            if connection.waits_for == READ:  # inside a reply there is no place for another
                text = "timed out after %g s in the middle of a frame" % settings.read_timeout
                try:
                    connection.resume.__self__.throw(BrokenStream(text))  # type: ignore[attr-defined]
                except StopIteration:
                    pass
            close(connection)

    def step(timeout: "float | None") -> None:
        """Wait until something happens; give each connection that can go on one turn."""
        now = time.monotonic() if deadlines else 0.0
        if ready:
            timeout = 0
        elif deadlines:
            nearest = max(0.0, min(deadlines.values()) - now)
            timeout = nearest if timeout is None else min(timeout, nearest)
        events = poll.poll(timeout, len(connections) + 2)  # room for all of them, and no more
        if deadlines:
            expire(now, {fd for fd, _ in events})
        turns = tuple(ready)
        ready.clear()
        for connection in turns:
            if connections.get(connection.fd) is connection:
                advance(connection)
        for fd, _ in events:
            if fd in connections:
                connection = connections.pop(fd)
                connections[fd] = connection
                if connection not in turns:
                    advance(connection)
            elif fd == listening:
                accept()
            elif fd == waking:
                clear_wake()
        while threads and finished:
            advance(*finished.popleft())

    def drain() -> None:
        """Answer what the backlog and the connections hold; take nothing more."""
        file.remove()
        listener.shutdown(_socket.SHUT_RD)  # new clients are refused before they send anything
        while accept():
            pass
        deadlines.pop(listening, None)
        poll.unregister(listening)
        listener.close()
        for connection in connections.values():
            try:
                # Their next write fails; what is here can be read
                connection.sock.shutdown(_socket.SHUT_RD)
            except OSError:
                pass  # the peer is gone
        give_up = time.monotonic() + PATIENCE
        while connections and (busy or ready or time.monotonic() < give_up):
            began = time.monotonic()
            step(PATIENCE / 10)
            if busy or time.monotonic() - began > PATIENCE / 5:
                give_up = time.monotonic() + PATIENCE  # a handler was slow, not the peers

    poll.register(listening, READ)
    poll.register(waking, READ)
    os.register_at_fork(after_in_child=close_in_child)
    state.wake = wake  # before anybody can connect: what they send is answered
    file.publish()
    log("serving %s on %s" % (settings.handler, settings.socket_path))
    while not (state.stopping or state.poisoned):
        step(None)
    drain()


def reserve_std_fds() -> None:
    """Occupy fds 0, 1 and 2, so that nothing else becomes one of them."""
    fd = 0
    while fd < 3:
        fd = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(fd, fd < 3)
    os.close(fd)


# --- Command line


def import_handler(settings: Settings) -> "Callable[[Any], Any]":
    """Import the handler as a script of the user in the current directory would."""
    del sys.argv[1:]
    try:
        sys.path.insert(0, os.getcwd())
    except OSError:
        pass  # the directory was removed
    return load_handler(settings.handler)


def run(settings: Settings) -> int:
    """Serve until a signal or a lost GPU context; return the exit code."""
    reserve_std_fds()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # lines are in the log when they are printed
    # glibc learns from this that blocks of this size come and go. Otherwise the memory of each
    # large message is paged in again, which costs a third of the time. No page is touched here
    bytes(4194304)
    file = open_listener(settings.socket_path, settings.socket_mode)
    state = State()
    watch = start_watch(settings.handler_timeout, state, file.remove)
    try:
        call = watch.watch_call(make_call(import_handler(settings), settings.concurrency > 1))
        answer = make_answer(settings, call, state)
        reserve_std_fds()
        watch.install()
        serve(settings, file, answer, state)
    finally:
        file.remove()
    return EXIT_POISONED if state.poisoned else 0


def check(settings: Settings) -> int:
    """Import the handler without serving it."""
    make_call(import_handler(settings), False)
    make_codec(settings.json, False)
    print("asya_runtime: %s can be served" % settings.handler)
    return 0


def check_ready(settings: Settings) -> int:
    """Exit 0 if a process listens. The file proves nothing: it survives its process."""
    try:
        try_to_connect(settings.socket_path)
    except OSError as error:
        details = (settings.socket_path, error.strerror, read_startup_error())
        print("asya_runtime: not ready: %s: %s%s" % details)
        return 1
    return 0


def read_startup_error() -> str:
    """Return what `report` left for Kubernetes: it is not shown while the container runs on."""
    try:
        with open("/dev/termination-log", encoding="utf-8", errors="replace") as stream:
            name, found, line = stream.read().partition("asya_runtime: ")
    except OSError:
        return ""
    return "; " + line.rstrip() if found and not name else ""


def send_once(settings: Settings, files: "list[str]") -> int:
    """Send one message, print the reply, exit 0 if it is a success."""
    import socket

    reply = b""
    try:
        with open(files[0], "rb") if files else sys.stdin.buffer as source:
            body = source.read()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(settings.socket_path)
            sock.sendall(len(body).to_bytes(4, "big") + body)
            with sock.makefile("rb") as stream:
                reply = stream.read(int.from_bytes(stream.read(4), "big"))
    except OSError as error:
        log("%s: %s" % (error.filename or settings.socket_path, error.strerror))
        return 1
    sys.stdout.buffer.write(reply + b"\n" if reply else b"asya_runtime: no reply\n")
    return 0 if reply.startswith(b'{"status":"ok"') else 1


USAGE = """usage: asya_runtime.py                serve ASYA_HANDLER on ASYA_SOCKET_PATH
       asya_runtime.py --check        import the handler; exit 0 or 78
       asya_runtime.py --ready        exit 0 if it is being served, else 1
       asya_runtime.py --call [FILE]  send one message (default: standard input), print the reply
"""


def report(error: StartupError) -> int:
    """Write why the process cannot start to the log and to the pod's status."""
    line = " ".join(str(error).split())[:4000]
    log(line)
    try:  # without creating it: it exists in Kubernetes only
        fd = os.open("/dev/termination-log", os.O_WRONLY | os.O_TRUNC)
        os.write(fd, ("asya_runtime: %s\n" % line).encode("utf-8", "backslashreplace")[:4096])
        os.close(fd)
    except OSError:
        pass
    return EXIT_CONFIG


def main(arguments: "list[str]", environ: "Mapping[str, str]") -> int:
    """Run the command of the command line; return the exit code."""
    command, rest = (arguments + [""])[0], arguments[1:]
    try:
        if command in ("--ready", "--call") and len(rest) <= (command == "--call"):
            settings = Settings(environ, only="ASYA_SOCKET_PATH")
            return send_once(settings, rest) if command == "--call" else check_ready(settings)
        if command in ("", "--check") and not rest:
            return (check if command else run)(Settings(environ))
    except StartupError as error:
        return report(error)
    sys.stderr.write(USAGE)
    return 0 if command in ("-h", "--help") else 64


def exit_process(code: int) -> None:
    """End the process, even if threads of user code do not end."""

    def insist() -> None:
        time.sleep(PATIENCE)
        os._exit(code)

    start_thread(insist)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["--ready"]:
        sys.exit(main(sys.argv[1:], os.environ))
    exit_process(main(sys.argv[1:], os.environ))
