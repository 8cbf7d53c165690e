#!/usr/bin/env python3
"""One Python function of this container, served on a Unix socket to a sidecar.

    ASYA_HANDLER=my_app.handler.predict python3 asya_runtime.py

A frame, the same in both directions; any number of them on one connection:

     0         4                    4 + N
    +---------+--------------------+
    | N       | N bytes            |    N: big-endian unsigned 32 bits
    +---------+--------------------+    N bytes: one JSON object, UTF-8

Each complete frame gets exactly one reply, whatever the handler does. README.md beside
this file is the contract for those who write the other end.

How it is built: an epoll loop on the main thread moves bytes; each connection is a
generator (`converse`) that yields what it waits for; `answer` turns the bytes of a message
into the bytes of its reply and never raises. The handler runs on the main thread too,
because that is where it was imported and where sqlite, signal, asyncio and contextvars
expect it; worker threads exist only with ASYA_CONCURRENCY above 1. State lives in closures.
Modules are imported where they are needed: `--ready` is a probe and has to be cheap. Sockets
are those of `_socket`: socket.py costs 6 ms at the start and a part of each accept, and user
code may replace its classes (gevent does).
"""

import errno
import os
import sys
import time

if sys.version_info < (3, 9):  # plain words instead of a SyntaxError: this file parses on 3.6
    sys.stderr.write(
        "asya_runtime: needs Python 3.9 or newer, this is %s (%s)\n"
        % (sys.version.split()[0], sys.executable)
    )
    sys.exit(78)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812
    from collections.abc import Callable, Generator, Iterator, Mapping
    from typing import Any, TypeVar, Union

    T = TypeVar("T")
    Bytes = Union[bytes, bytearray, memoryview]
    Parcel = list[Bytes]  # a message: a list, so that whoever takes the bytes out frees them
    Answer = Callable[[Parcel], Bytes]
    Encode = Callable[[list[Any]], Bytes]
    Action = Callable[[], None]
    Place = tuple[Socket, Action, Action]  # the listener, `publish()`, `remove()`
    Request = dict[str, object]
    Call = Callable[[Request], object]
    Conversation = Generator[Union[int, Parcel], Any, None]

EXIT_REFUSED = 78  # EX_CONFIG: the settings or the handler are wrong; said in one line
EXIT_POISONED = 70  # EX_SOFTWARE: the GPU context is lost; only a new process helps

# --- Settings: one table, read once


class Refused(Exception):  # noqa: N818
    """The process cannot start; the text is the one line that says why and what to do."""


def _form(
    words: str, pattern: str, read: "Callable[[str], Any]" = str, low: float = 0, high: float = 0
) -> "Callable[[str], Any]":
    """Give a parser for texts of a pattern, and with `high` for values from `low` to `high`."""

    def parse(text: str) -> "Any":
        import re

        value = read(text) if re.fullmatch(pattern, text) else None
        if value is None or (high and not low <= value <= high):
            raise ValueError("must be " + words)
        return value

    return parse


def _number(low: int, high: int) -> "Callable[[str], Any]":
    return _form("a whole number from %d to %d" % (low, high), "[0-9]{1,20}", int, low, high)


def _seconds(words: str, low: float) -> "Callable[[str], Any]":
    number = r"(?i)[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
    return _form("a number of seconds, " + words, number, float, low, sys.float_info.max)


def _path(text: str) -> str:
    if not os.path.isabs(text) or text.endswith("/"):
        raise ValueError("must be the absolute path of a file")
    if len(os.fsencode(text)) > 107:
        raise ValueError("must be at most 107 bytes long, the kernel's limit for sockets")
    return text


_name = _form(
    "module.path.function or module.Class.method",
    r".+\..+",
    lambda text: text if all(map(str.isidentifier, text.split("."))) else None,
)
_boolean = _form(
    "true, 1, yes, false, 0 or no",
    "(?i)true|1|yes|false|0|no",
    lambda text: text.lower() in ("true", "1", "yes"),
)
_mode = _form("octal, 0 to 0777", "0*[0-7]{1,3}", lambda text: int(text, 8))

# variable, default, parser; the attribute of Settings is the name in lower case without ASYA_
SETTINGS: "tuple[tuple[str, str, Callable[[str], object]], ...]" = (
    ("ASYA_HANDLER", "", _name),
    ("ASYA_SOCKET_PATH", "/tmp/sockets/app.sock", _path),  # noqa: S108
    ("ASYA_INCLUDE_METADATA", "false", _boolean),
    ("ASYA_CHUNK_SIZE", "4096", _number(1, 16777216)),
    ("ASYA_HANDLER_TIMEOUT", "0", _seconds("at least 0", 0)),
    ("ASYA_ENABLE_OOM_DETECTION", "true", _boolean),
    ("ASYA_CUDA_CLEANUP_ON_OOM", "true", _boolean),
    ("ASYA_SOCKET_MODE", "0660", _mode),
    ("ASYA_CONCURRENCY", "1", _number(1, 1024)),
    ("ASYA_MAX_MESSAGE_SIZE", "4294967295", _number(1, 4294967295)),
    ("ASYA_READ_TIMEOUT", "60", _seconds("above 0", 5e-324)),
    ("ASYA_JSON", "stdlib", _form("stdlib, orjson or auto", "stdlib|orjson|auto")),
)


class Settings:
    """What the environment says, validated: an attribute for each row of the table."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, environ: "Mapping[str, str]", only: str = "") -> None:
        for variable, default, parse in SETTINGS:
            if only and variable != only:
                continue
            text = environ.get(variable, "").strip() or default
            if not text:
                raise Refused("%s is not set; it names what to serve: module.function" % variable)
            try:
                value = parse(text)
            except ValueError as error:
                raise Refused("%s=%s: %s" % (variable, text[:200], error)) from None
            setattr(self, variable[5:].lower(), value)


def log(text: str) -> None:
    """Write one line to fd 2: user code may have replaced or closed `sys.stderr`."""
    try:
        os.write(2, ("asya_runtime: %s\n" % text).encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody is left to be told


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
# Made while there is memory: the replies for when nothing can be built any more.
OUT_OF_MEMORY = (
    b'{"status":"error","error":"oom_error","message":"out of memory","type":"MemoryError",'
    b'"severity":"recoverable","retry_after":30}'
)
UNSPEAKABLE = (
    b'{"status":"error","error":"processing_error",'
    b'"message":"the handler\'s exception cannot be described","severity":"fatal"}'
)


def error_reply(
    code: str, message: str, kind: str = "", severity: str = "", retry_after: object = None
) -> bytes:
    """Build an error reply; `severity` and `retry_after` override the code's own."""
    import json

    usual, seconds = CODES[code]
    if retry_after is None and severity in ("", usual):
        retry_after = seconds
    fields: "dict[str, object]" = {"status": "error", "error": code}
    fields["message"] = message[:MESSAGE_LIMIT]
    fields.update(type=kind or None, severity=severity or usual, retry_after=retry_after)
    there = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(there, separators=(",", ":")).encode("ascii")


def describe(code: str, error: BaseException, lead: str = "") -> bytes:
    """Build the reply for an exception, whose own `severity` and `retry_after` win if valid."""
    kind, severity = type(error).__name__, attribute(error, "severity")
    retry_after = attribute(error, "retry_after")
    if not isinstance(severity, str) or severity not in ("recoverable", "fatal"):
        severity = ""  # other libraries use these names for other things
    if type(retry_after) not in (int, float) or not 0 <= retry_after <= sys.float_info.max:
        retry_after = None
    message = lead + (text_of(error) or kind)
    return error_reply(code, message, kind, severity, retry_after)


def text_of(error: BaseException) -> str:
    """Give the text of an exception, whose `__str__` may do anything but run out of memory."""
    try:
        return str(error)
    except MemoryError:
        raise
    except BaseException:
        return ""


def attribute(thing: object, name: str) -> "Any":
    """Give an attribute or None, whatever somebody's class does when asked."""
    try:
        return getattr(thing, name, None)
    except BaseException:
        return None


# --- JSON


def make_codec(choice: str, threads: bool) -> "tuple[Callable[[Parcel], object], Encode, Encode]":
    """Give `decode([message])`, `encode([result])` and the latter for large ones.

    All take what they get out of its list, and let go of it as soon as they can. What is encoded
    is the whole good reply.
    """
    import json
    import json.encoder

    def constant(word: str) -> object:
        raise ValueError("%s is not JSON" % word)

    def integer(digits: str) -> int:
        if len(digits) > 4300:
            raise ValueError("integer of %d digits" % len(digits))
        return int(digits)

    # Early 3.9 and 3.10 have no limit of their own, and need time quadratic in the digits
    parse_int = None if hasattr(sys, "set_int_max_str_digits") else integer
    decoder = json.JSONDecoder(parse_constant=constant, parse_int=parse_int)
    encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
    scan = decoder.scan_once  # type: ignore[attr-defined]
    parents: "dict[int, object]" = {}  # of what is being encoded: how a circle is found out

    def chunks(value: object, level: int) -> "tuple[str, ...]":
        return (encoder.encode(value),)

    escape = json.encoder.encode_basestring_ascii
    make = attribute(json.encoder, "c_make_encoder")
    form = (None, ":", ",", False, False, False)
    if make and not threads:  # once: `encode` makes one for each call, which costs as much again
        chunks = make(parents, encoder.default, escape, *form)

    @shallow
    def decode(parcel: "Parcel") -> object:
        text = str(parcel.pop(), "utf-8")
        try:
            value, end = scan(text, 0)
        except StopIteration:
            return decoder.decode(text)  # nothing begins here: it may after white space
        if end == len(text) or not text[end:].strip(" \t\r\n"):
            return value
        return decoder.decode(text)  # which complains of the rest

    @shallow
    def encode(box: "list[Any]") -> bytes:
        try:
            text = "".join(chunks({"status": "ok", "result": box[0]}, 0))
        except BaseException:
            parents.clear()
            raise
        box.clear()
        return text.encode("ascii")

    @shallow
    def encode_large(box: "list[Any]") -> "Bytes":
        """Escape long texts piece by piece: the encoder holds one, its like and the reply."""
        long: "list[str]" = []

        def put_off(text: str) -> str:
            if len(text) < STEP or type(text) is not str:
                return escape(text)
            long.append(text)
            return "\0"  # JSON holds none

        encode_outline = make({}, encoder.default, put_off, *form)
        outline = "".join(encode_outline({"status": "ok", "result": box[0]}, 0)).split("\0")
        box.clear()
        reply = bytearray()
        for part in outline:
            reply += part.encode("ascii")
            if long:
                text = long.pop(0)
                reply += b'"'
                for at in range(0, len(text), STEP):
                    reply += escape(text[at : at + STEP])[1:-1].encode("ascii")
                reply += b'"'
        return reply

    @shallow
    def encode_fast(box: "list[Any]") -> bytes:
        try:
            reply: bytes = orjson.dumps({"status": "ok", "result": box[0]}, None, option)
        except TypeError:
            return encode(box)  # integers of any size, keys of any type, or the complaint
        # orjson makes null of NaN: the standard library looks whether there was one
        if has_no_float(box[0], [64]) or reply.rfind(b"null") < 0:  # twice as fast as `in`
            return reply
        return encode(box)

    standard = (decode, encode, encode_large if make else encode)
    if choice == "stdlib":
        return standard
    try:
        import orjson  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        if choice == "auto":
            return standard
        raise Refused("ASYA_JSON=orjson: this image has no orjson; auto does without") from None
    option = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS
    option |= orjson.OPT_PASSTHROUGH_DATETIME
    loads = orjson.loads
    return lambda parcel: loads(parcel.pop()), encode_fast, encode_fast


def has_no_float(value: object, left: "list[int]") -> bool:
    """Whether there is no float in a value of at most `left` parts; dearer to know for more."""
    left[0] -= 1
    if left[0] < 0:
        return False
    if type(value) is dict:
        return all(has_no_float(item, left) for item in value.values())
    if type(value) is list:
        return all(has_no_float(item, left) for item in value)
    return value is None or type(value) in (str, int, bool)


def shallow(function: "Callable[[Any], T]") -> "Callable[[Any], T]":
    """Bound recursion in C, which before 3.12 obeys a limit that users may set sky-high."""
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
    """Name the first value that is no JSON, from where it is: `.items[3].score: nan`."""
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


# --- Memory errors: recognised by name and text, never by importing a framework

# No later GPU call of this process will succeed.
STICKY = r"""
    cuda\ error:\ (device-side|an\ illegal|unspecified|misaligned|uncorrectable|unknown\ error)
  | an\ illegal\ (memory\ access|instruction)\ was\ encountered | unspecified\ launch\ failure
  | device-side\ assert\ triggered | uncorrectable\ ecc\ error\ encountered | misaligned\ address
  | cudaerror(illegal(address|instruction)|assert|launchfailure|misalignedaddress|eccuncorrectable)
  | cuda_error_(illegal_(address|instruction)|assert|launch_failed|misaligned_address|ecc_uncorr)
  | (cublas|cudnn)_status_execution_failed | ncclunhandledcudaerror
  | cannot\ re-initialize\ cuda\ in\ forked\ subprocess
"""
# GPU memory is gone. The word "CUDA" or "memory" alone would mean nothing.
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
# The host's memory is gone, in the words of something that raises no MemoryError.
HOST = r"""
    defaultcpuallocator:\ (can't\ allocate|not\ enough)\ memory
  | resource_exhausted:\ out\ of\ memory\ allocating | oom\ when\ allocating\ tensor.*device:cpu
  | device:cpu\S*\ failed\ to\ allocate\ memory
  | failed\ to\ allocate\ memory\ for\ requested\ buffer | onnxruntimeerror.*std::bad_alloc
  | available\ memory\ of\ \d+\ is\ smaller\ than\ requested
"""

GPU_CLASSES = ("torch.OutOfMemoryError", "cupy.OutOfMemoryError", "pycuda.MemoryError")


def links(error: BaseException) -> "Iterator[BaseException]":
    """Walk an exception and what it came from, as the interpreter would print it."""
    todo: "list[Any]" = [error]
    seen: "set[int]" = set()
    while todo and len(seen) < 1000:
        link = todo.pop()
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        group = attribute(link, "exceptions")  # of an ExceptionGroup, or its backport
        todo.extend(group if isinstance(group, tuple) else ())
        if not attribute(link, "__suppress_context__"):
            todo.append(attribute(link, "__context__"))
        todo.append(attribute(link, "__cause__"))


def make_classify() -> "Callable[[BaseException], str]":
    """Give the function that says `sticky`, `cuda_oom_error`, `oom_error` or nothing."""
    import re

    flags = re.IGNORECASE | re.VERBOSE | re.DOTALL
    sticky, gpu, host = (re.compile(text, flags).search for text in (STICKY, GPU, HOST))

    def classify(error: BaseException) -> str:
        verdict = ""
        for link in links(error):
            text = text_of(link)[:20000]
            classes = {
                "%s.%s" % (str(base.__module__).partition(".")[0], base.__name__)
                for base in type(link).__mro__
            }
            if sticky(text) or "vllm.EngineDeadError" in classes:
                return "sticky"
            if gpu(text) or not classes.isdisjoint(GPU_CLASSES):
                verdict = "cuda_oom_error"  # looked for first: CuPy's is a MemoryError
            elif verdict or not (isinstance(link, (MemoryError, OSError)) or host(text)):
                continue
            elif not isinstance(link, OSError) or link.errno == errno.ENOMEM:
                verdict = "oom_error"
        return verdict

    return classify


def release_frames(error: BaseException) -> None:
    """Let go of what the frames of the failed call hold: their locals are the large tensors."""
    import traceback  # there is no memory to load it now: `make_answer` did

    for link in list(links(error)):
        trace = attribute(link, "__traceback__")
        BaseException.with_traceback(link, None)  # an assignment fails if its class is frozen
        traceback.clear_frames(trace)


def empty_caches() -> None:
    """Give cached GPU memory back, of frameworks that are loaded; initialise none of them."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")

    def of_torch(device: str) -> None:
        part = attribute(torch, device)
        if part is not None and part.is_initialized():
            part.empty_cache()
            getattr(part, "ipc_collect", int)()

    def of_apple() -> None:
        if torch is not None and torch.backends.mps.is_available():
            torch.mps.empty_cache()

    def of_cupy() -> None:
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()

    steps: "list[Action]" = [lambda: of_torch("cuda"), lambda: of_torch("xpu"), of_apple, of_cupy]
    for step in steps:
        try:
            step()
        except Exception as error:  # which can itself run out of memory
            log("emptying a GPU cache failed: %s" % type(error).__name__)


def log_traceback(error: BaseException, what: str) -> None:
    """Log an exception as the interpreter would, without the frames of this file."""
    try:
        import traceback

        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals is globals():
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        log(what + "\n" + "".join(lines)[-20000:].rstrip())
    except BaseException:
        log(what + "; its traceback cannot be shown")


# --- The handler

COROUTINE, ASYNC_GENERATOR = 0x80, 0x200  # of inspect, whose import costs 10 ms
GENERATOR = type(_ for _ in ())


def load_handler(name: str) -> "Callable[[Any], Any]":
    """Import `module.path.function`, or `module.Class.method` of one instance."""
    import importlib

    def failed(error: BaseException, what: str) -> Refused:
        log_traceback(error, what)
        return Refused("%s: %s: %s" % (what, type(error).__name__, text_of(error)[:300]))

    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:cut])
        try:
            thing = importlib.import_module(path)
            break
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if not (path + ".").startswith(missing + "."):
                what = "%s needs the module %s, which this image does not have" % (path, missing)
                raise failed(error, what) from None
            if cut == 1:
                raise Refused(explain_missing(name, missing)) from None
        except BaseException as error:  # the SystemExit of a script among them
            raise failed(error, "importing %s failed" % path) from None
    for part in parts[cut:]:
        if isinstance(thing, type):
            try:
                thing = thing()
            except BaseException as error:
                raise failed(error, "making one %s failed" % path) from None
        if not hasattr(thing, part):
            raise Refused("%s has no %s; it has %s" % (path, part, contents(thing)))
        thing, path = getattr(thing, part), path + "." + part
    if isinstance(thing, type):
        raise Refused("%s is a class; name its method: it has %s" % (path, contents(thing)))
    if not callable(thing):
        raise Refused("%s is no function, it is of type %s" % (path, type(thing).__name__))
    return thing  # type: ignore[no-any-return, unused-ignore]


def contents(thing: object) -> str:
    """List what a module, package or object offers."""
    names = [n for n in dir(thing) if n[0] != "_" and callable(attribute(thing, n))]
    for folder in attribute(thing, "__path__") or ():
        names += ["the module " + n[:-3] for n in sorted(os.listdir(folder)) if n.endswith(".py")]
    return ", ".join(names[:20]) or "nothing to call"


def explain_missing(name: str, missing: str) -> str:
    """Say where `missing` was looked for, and which folder near there has it."""
    near = ""
    for root in sys.path[:20]:
        try:
            folders = [entry.path for entry in os.scandir(root or ".") if entry.is_dir()]
        except OSError:
            continue  # archives, and what is not there
        for folder in folders[:200]:
            if any(os.path.exists(os.path.join(folder, missing + end)) for end in (".py", "")):
                near = near or "; %s has it: set PYTHONPATH to that" % folder
    where = ", ".join(path or "." for path in sys.path)
    return "ASYA_HANDLER=%s: no module %s%s; looked in %s" % (name, missing, near, where)


def make_call(handler: "Callable[[Any], Any]", threads: bool) -> "Call":
    """Give a plain function that calls the handler: sync, async or generator."""
    function = handler
    while type(function).__name__ == "partial":
        function = attribute(function, "func")
    own = attribute(attribute(type(function), "__call__"), "__code__")
    flags = attribute(attribute(function, "__code__") or own, "co_flags") or 0
    if not flags & (COROUTINE | ASYNC_GENERATOR):
        return handler

    import asyncio

    if sys.version_info < (3, 10):  # locks made at import belong to the current loop there
        loop = asyncio.get_event_loop()
    else:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)

    async def outcome(request: "Request") -> "tuple[object, BaseException | None]":
        try:
            if flags & ASYNC_GENERATOR:
                return [item async for item in handler(request)], None
            return await handler(request), None
        except BaseException as error:  # let out, a SystemExit would end the loop
            return None, error

    def persist(run: "Callable[[], Any]", done: "Callable[[], bool]") -> None:
        while not done():
            try:
                run()
            except BaseException as error:  # SystemExit in a background task of the user's
                log_traceback(error, "a background task stopped the event loop; it goes on")

    def call(request: "Request") -> object:
        if threads:
            result, error = asyncio.run_coroutine_threadsafe(outcome(request), loop).result()
        else:
            task = loop.create_task(outcome(request))
            persist(lambda: loop.run_until_complete(task), task.done)
            result, error = task.result()
        if error is not None:
            raise error
        return result

    if threads:
        in_background(lambda: persist(loop.run_forever, lambda: False))
    return call


def in_background(work: "Callable[[], object]") -> None:
    """Start a daemon thread: the process never waits for it."""
    import threading

    size = threading.stack_size(16777216)  # deep JSON needs it; only what is used costs memory
    threading.Thread(target=work, daemon=True).start()
    threading.stack_size(size)


def make_answer(settings: Settings, call: "Call", ending: "list[int]") -> "Answer":
    """Give the function that turns a message into its reply, and never raises."""
    import gc
    import traceback  # noqa: F401  # now: later memory or file descriptors may have run out

    decode, encode, encode_large = make_codec(settings.json, settings.concurrency > 1)
    classify = make_classify() if settings.enable_oom_detection else lambda error: ""
    metadata = settings.include_metadata

    def judge(error: BaseException, lead: str = "") -> "tuple[bytes, str]":
        """Build the reply first; then free what the failed call holds."""
        reply, kind = OUT_OF_MEMORY if settings.enable_oom_detection else UNSPEAKABLE, ""
        try:
            kind = classify(error)
            code = kind if kind in CODES else "processing_error"
            reply = describe(code, error, "" if kind else lead)
            if kind in CODES:
                log("%s: %s" % (code, type(error).__name__))
            else:
                log_traceback(error, lead or "the handler failed")
        except MemoryError:
            kind = kind or "oom_error"
        except BaseException:
            reply = UNSPEAKABLE
        release_frames(error)
        return reply, kind

    def recover(kind: str) -> None:
        """Make the next call possible, or end the process when there cannot be one."""
        if kind == "sticky":
            log("the GPU context of this process is lost: it ends after this reply")
            ending.append(EXIT_POISONED)
            return
        gc.collect()
        if settings.cuda_cleanup_on_oom:
            empty_caches()

    def complaint(box: "list[Any]") -> str:
        try:
            return "the result is no JSON: result%s; " % find_unencodable(box[0])
        except BaseException:
            return "the result is no JSON: "

    def answer(parcel: "Parcel") -> "Bytes":
        if EXIT_POISONED in ending:
            return error_reply("processing_error", "the process restarts", "", "recoverable", 1)
        kind, step = "", "decode"
        build = encode if len(parcel[0]) < LARGE else encode_large
        request: "Any" = None
        box: "list[Any]" = []
        try:
            request = decode(parcel)
            if not isinstance(request, dict):
                raise ValueError("the message is no JSON object")
            if not isinstance(request.get("payload"), dict):
                raise ValueError('the message has no object "payload"')
            if not metadata:
                request = {"payload": request["payload"]}
            step = "call"
            box = [call(request)]
            request = None  # its memory may be needed for the reply
            if type(box[0]) is GENERATOR:
                box = [list(box[0])]
            step = "encode"
            reply = build(box)
            step = "send"
            if len(reply) > FRAME_LIMIT:
                raise OverflowError("a reply of %d bytes does not fit a frame" % len(reply))
        except BaseException as error:  # SystemExit and KeyboardInterrupt are answered too
            if step == "decode" and isinstance(error, (ValueError, RecursionError)):
                return describe("invalid_json", error)
            unfit = step == "encode" and not isinstance(error, MemoryError)
            reply, kind = judge(error, complaint(box) if unfit else "")
        if kind:
            request = None
            box.clear()
            recover(kind)
        return reply

    return answer


# --- The socket file: there if and only if the handler serves


def open_listener(path: str, mode: int) -> "Place":
    """Listen under a temporary name. Give the listener, `publish()` and `remove()`."""
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
        raise Refused("the socket's directory %s: %s" % (folder, error.strerror)) from None

    def address(entry: str) -> str:
        plain = os.path.join(folder, entry)
        if len(os.fsencode(plain)) <= 107:
            return plain
        return "/proc/self/fd/%d/%s" % (directory, entry)  # short, whatever the folder's name

    def status(entry: str) -> os.stat_result:
        return os.stat(entry, dir_fd=directory, follow_symlinks=False)

    def clear(entry: str) -> None:
        """Remove a socket that nobody listens to; raise Refused for anything else there."""
        try:
            if not stat.S_ISSOCK(status(entry).st_mode):
                raise Refused("%s exists, is no socket, and stays" % os.path.join(folder, entry))
            try_to_connect(address(entry))
        except ConnectionRefusedError:
            os.unlink(entry, dir_fd=directory)
            return
        except FileNotFoundError:
            return
        raise Refused("another process serves %s" % os.path.join(folder, entry))

    def locked(action: "Action") -> None:
        """Run under the directory's lock: nobody may come between a check and its change."""
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            action()
        except OSError as error:
            raise Refused("the socket %s: %s" % (path, error.strerror or error)) from None
        finally:
            fcntl.flock(directory, fcntl.LOCK_UN)

    def claim() -> None:
        clear(name)
        for entry in os.listdir(directory):
            if entry.startswith(".asya-"):
                try:
                    clear(entry)  # left by a start that was killed
                except (OSError, Refused):
                    pass  # a start that is under way
        listener.bind(address(temporary))
        os.chmod(temporary, mode, dir_fd=directory)
        listener.listen(1024)
        listener.setblocking(False)

    def publish() -> None:
        clear(name)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)

    def remove() -> None:
        for entry in (temporary, name):
            try:
                if os.path.samestat(status(entry), ours):
                    os.unlink(entry, dir_fd=directory)
            except OSError:
                pass  # not there, or gone with its directory

    def after_fork() -> None:
        listener.close()
        os.close(directory)

    locked(claim)
    ours = status(temporary)
    os.register_at_fork(after_in_child=after_fork)
    return listener, lambda: locked(publish), remove


def try_to_connect(address: str) -> None:
    """Find out whether somebody listens there; raises OSError if not."""
    import _socket

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        pass  # its backlog is full: very much alive
    finally:
        sock.close()


# --- Signals, and the watch over slow calls: one thread


def start_watch(
    limit: float, abandon: "Action"
) -> "tuple[Action, list[Action], Callable[[Call], Call]]":
    """Start the thread that hears SIGTERM even while the main thread is deep in C code.

    Gives `install()`, for again after the handler's import, which may have replaced signal
    handlers; a list for the function that SIGTERM is to call (while it is empty: `abandon()`,
    exit 0); what makes of a call one that is warned about while it runs over `limit` seconds.
    """
    import select
    import signal

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    running: "dict[object, float]" = {}
    stop: "list[Action]" = []
    heard = {"thread": 0, "main": 0}
    masks: "list[set[int]]" = []
    numbers = (signal.SIGTERM, signal.SIGINT)

    def hear(where: str, number: int) -> None:
        heard[where] += 1
        if heard[where] > 1:
            os._exit(128 + number)
        if not stop:
            abandon()
            os._exit(0)
        stop[0]()

    def install() -> None:
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in numbers:  # heard both ways: user code may take the wake-up fd
            signal.signal(number, heard_in_python)

    def heard_in_python(number: int, frame: object) -> None:
        hear("main", number)

    def before_fork() -> None:  # what a child is sent, its copy of our pipe would tell us
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, numbers))

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.pop())

    def in_child() -> None:
        signal.set_wakeup_fd(-1)
        for number in numbers:
            if signal.getsignal(number) is heard_in_python:
                signal.signal(number, signal.SIG_DFL)
        os.close(reader)
        os.close(writer)
        in_parent()

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
                    if number in numbers:
                        hear("thread", number)

    def timed(call: "Call") -> "Call":
        def timed_call(request: "Request") -> object:
            key = object()
            running[key] = time.monotonic()
            try:
                result = call(request)
                return list(result) if type(result) is GENERATOR else result
            finally:
                del running[key]

        return timed_call if limit else call

    install()
    os.register_at_fork(before=before_fork, after_in_parent=in_parent, after_in_child=in_child)
    in_background(watch)
    return install, stop, timed


# --- Connections

IDLE, NOW, READ, WRITE = 0, -1, 1, 4  # what a conversation waits for; 1, 4: EPOLLIN, EPOLLOUT
GROWTH = 65536  # the first buffer of what is larger than ASYA_CHUNK_SIZE
KEPT = 4194304  # a buffer up to this size is used again
STEP = 1048576  # a buffer doubles, but by no more than this; the allocator would keep larger ones
LARGE = 16777216  # replies to messages of this size are made with little memory


class Broken(Exception):  # noqa: N818
    """The stream ended or stalled inside a frame: nobody knows where the next one begins."""


def converse(
    sock: "Socket", settings: Settings, spare: "list[bytearray]", answer: "Answer | None"
) -> "Conversation":
    """Serve one connection from accept to close.

    Yields what to wait for; without `answer` also a parcel with a message, for which it is sent
    the reply. `spare` holds one receive buffer for all: a new one has to be zeroed and paged in.
    """
    import struct

    nothing_left = OUT_OF_MEMORY if settings.enable_oom_detection else UNSPEAKABLE
    length = struct.Struct(">I")
    pack, unpack = length.pack, length.unpack_from
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
                        raise Broken("the connection ended inside a length prefix")
                    return
                held = held + data if held else data
                if len(held) < 4:
                    continue
            size = unpack(held)[0]
            end = size + 4
            if size > settings.max_message_size:
                yield from receive(sock, None, len(held[4:end]), size)
                text = "%d bytes are over the limit of %d" % (size, settings.max_message_size)
                reply: "Bytes" = error_reply("connection_error", text)
            elif end <= len(held):
                parcel: "Parcel" = [held[4:end]]
                reply = answer(parcel) if answer else (yield parcel)
            else:
                buffer = spare.pop() if spare else bytearray(GROWTH)
                buffer[: len(held) - 4] = held[4:]
                whole = yield from receive(sock, buffer, len(held) - 4, size)
                parcel = [memoryview(buffer)[:size]]
                keep = buffer if len(buffer) <= KEPT else None
                del buffer  # so that a large one is free when the handler is called
                reply = (answer(parcel) if answer else (yield parcel)) if whole else nothing_left
                parcel.clear()
                if keep is not None:
                    spare[:] = [keep]
            held = held[end:]
            prefix = pack(len(reply))
            try:
                if len(reply) < GROWTH:
                    sent = send(prefix + reply)
                else:  # too large to be copied
                    sent = sock.sendmsg((prefix, reply))
            except BlockingIOError:
                sent = 0
            if sent < len(reply) + 4:
                yield from write(sock, prefix[sent:])
                yield from write(sock, memoryview(reply)[max(0, sent - 4) :])
            del reply
            if len(held) >= 4:
                yield NOW  # the others' turn
    except Broken as error:
        reply = error_reply("connection_error", str(error))
        try:
            send(len(reply).to_bytes(4, "big") + reply)
        except OSError:
            pass
    except OSError:
        pass  # the peer has gone, and nobody is left to be answered


def receive(
    sock: "Socket", buffer: "bytearray | None", got: int, size: int
) -> "Generator[int, None, bool]":
    """Receive the rest of `size` bytes into `buffer`, which grows with what has really arrived.

    Gives whether all are there. Without a buffer, or when memory is gone, they pass by.
    """
    while got < size:
        try:
            if buffer is None:
                count = len(sock.recv(min(size - got, GROWTH)))
            else:
                if got == len(buffer):
                    buffer.extend(bytes(min(max(got, GROWTH), STEP, size - got)))
                with memoryview(buffer) as view:
                    count = sock.recv_into(view[got:size])
            if not count:
                raise Broken("the connection ended after %d of %d bytes" % (got, size))
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
    """Send `data`, as fast as the peer reads."""
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            pass
        if data:
            yield WRITE


def serve(
    settings: Settings, place: "Place", answer: "Answer", ending: "list[int]", stop: "list[Action]"
) -> None:
    """Move bytes until `ending` has an exit code; then answer what has arrived, and return."""
    import _socket
    import collections
    import resource
    import select

    listener, publish, retire = place
    poll, listening = select.epoll(), listener.fileno()
    waker, alarm = os.pipe()
    os.set_blocking(alarm, False)
    # By fd, the longest unused first: [send() of the conversation, what it waits for, socket]
    talks: "dict[int, list[Any]]" = {}
    deadlines: "dict[int, float]" = {}  # of those inside a frame, and of a pause in accepting
    turns: "list[int]" = []  # those that have their next message already
    spare: "list[bytearray]" = []
    forked: "list[bool]" = []
    busy: "set[int]" = set()  # those whose message a worker has
    finished: "collections.deque[tuple[int, Bytes]]" = collections.deque()
    workers: "list[int]" = []
    most = min(1000, max(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))

    def wake() -> None:
        try:
            os.write(alarm, b"!")
        except BlockingIOError:
            pass  # it has been woken often enough

    def end() -> None:
        ending.append(0)
        wake()

    def after_fork() -> None:
        """In a child of user code: hold nothing open, or a dead runtime would look alive."""
        forked.append(True)
        poll.close()
        os.close(waker)
        os.close(alarm)
        for talk in talks.values():
            talk[2].close()

    def reply_to(parcel: "Parcel") -> "Bytes":
        reply = answer(parcel)
        if forked:  # the handler forked, and this is its child, which is no server
            os._exit(0)
        return reply

    answer_here: "Answer | None" = reply_to
    if settings.concurrency > 1:
        import queue

        answer_here = None
        jobs: "queue.SimpleQueue[tuple[int, Parcel]]" = queue.SimpleQueue()

    def work() -> None:
        while True:
            fd, parcel = jobs.get()
            finished.append((fd, reply_to(parcel)))
            wake()

    def hand_over(fd: int, parcel: "Parcel") -> None:
        poll.unregister(fd)
        busy.add(fd)
        jobs.put((fd, parcel))
        if len(workers) < min(len(busy), settings.concurrency):
            workers.append(fd)
            in_background(work)

    def advance(fd: int, talk: "list[Any]", value: object = None) -> None:
        """Continue a conversation until it has to wait."""
        try:
            wait = talk[0](value)
            if wait == talk[1] == IDLE:  # most often: a whole message has come, and was answered
                return
            if type(wait) is list:
                deadlines.pop(fd, None)
                hand_over(fd, wait)
                return
        except StopIteration:
            close(fd)
            return
        except MemoryError:
            log("no memory to receive or to send: a connection is closed")
            close(fd)
            return
        if wait > 0:
            deadlines[fd] = time.monotonic() + settings.read_timeout
        elif deadlines:
            deadlines.pop(fd, None)
        if wait == NOW:
            turns.append(fd)
        if wait != talk[1] and (wait or READ) != (talk[1] or READ):
            poll.modify(fd, READ if wait < WRITE else WRITE)
        talk[1] = wait

    def close(fd: int) -> None:
        deadlines.pop(fd, None)
        talks.pop(fd)[2].close()

    def make_space() -> bool:
        """Close the connection that has been quiet longest, if possible one between messages."""

        def has_begun(fd: int) -> bool:
            try:
                return talks[fd][1] != IDLE or bool(talks[fd][2].recv(1, _socket.MSG_PEEK))
            except OSError:
                return False

        quiet = [fd for fd in talks if fd not in busy]
        if quiet:
            close(next((fd for fd in quiet if not has_begun(fd)), quiet[0]))
        return bool(quiet)

    def accept() -> bool:
        try:
            fd = listener._accept()[0]  # type: ignore[attr-defined]
            if fd < 3:  # user code has closed that one: its prints would go here
                occupy_standard()
                low = fd
                try:
                    fd = os.dup(low)
                finally:
                    os.close(low)
                    occupy_standard()
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EINVAL:  # which says: shut down, and nobody is left
                log("a connection cannot be accepted: %s" % error.strerror)
                if not make_space():  # only time helps, and the listener stays readable
                    poll.modify(listening, 0)
                    deadlines[listening] = time.monotonic() + PAUSE
            return False
        if len(talks) >= most:
            make_space()
        sock.setblocking(False)  # always: user code may have set a default time limit
        talks[fd] = [converse(sock, settings, spare, answer_here).send, IDLE, sock]
        poll.register(fd, READ)
        advance(fd, talks[fd])
        return True

    def expire(now: float, came: "set[int]") -> None:
        """End what stalled inside a frame: late before a poll that brought nothing for it."""
        for fd in [fd for fd in deadlines if deadlines[fd] <= now and fd not in came]:
            if fd == listening:
                del deadlines[fd]
                poll.modify(fd, READ)
                continue
            if talks[fd][1] == READ:  # inside a reply, there is no place for another
                try:
                    text = "no byte for %g s inside a frame" % settings.read_timeout
                    talks[fd][0].__self__.throw(Broken(text))
                except StopIteration:
                    pass
            close(fd)

    def turn(wait: "float | None") -> None:
        """Wait until something happens; give each connection that can go on one step."""
        now = time.monotonic() if deadlines else 0.0
        if turns:
            wait = 0
        elif deadlines:
            nearest = max(0.0, min(deadlines.values()) - now)
            wait = nearest if wait is None else min(wait, nearest)
        events = poll.poll(wait, len(talks) + 2)  # room for all of them, and no more
        if deadlines:
            expire(now, {fd for fd, _ in events})
        again = tuple(turns)
        turns.clear()
        for fd in again:
            if fd in talks:
                advance(fd, talks[fd])
        for fd, _ in events:
            if fd in talks:
                if fd not in again:
                    talks[fd] = talk = talks.pop(fd)
                    advance(fd, talk)
            elif fd == listening:
                accept()
            elif fd == waker:
                os.read(waker, 4096)
        while finished:
            fd, reply = finished.popleft()
            busy.discard(fd)
            poll.register(fd, READ if talks[fd][1] < WRITE else WRITE)
            advance(fd, talks[fd], reply)

    def drain() -> None:
        """Answer what the backlog and the connections hold; take nothing more."""
        retire()
        listener.shutdown(0)  # SHUT_RD: who comes now is refused, before anything is sent
        while accept():
            pass
        deadlines.pop(listening, None)
        poll.unregister(listening)
        listener.close()
        for talk in talks.values():
            try:
                talk[2].shutdown(0)  # SHUT_RD: their next write fails, what is here can be read
            except OSError:
                pass  # has gone
        patience = time.monotonic() + PATIENCE
        while talks and (busy or turns or time.monotonic() < patience):
            began = time.monotonic()
            turn(PATIENCE / 10)
            if busy or time.monotonic() - began > PATIENCE / 5:
                patience = time.monotonic() + PATIENCE  # not the peers were slow, a handler was

    poll.register(listening, READ)
    poll.register(waker, READ)
    os.register_at_fork(after_in_child=after_fork)
    stop.append(end)  # before anybody can connect: what they send is answered
    publish()
    log("serving %s on %s" % (settings.handler, settings.socket_path))
    while not ending:
        turn(None)
    drain()


PAUSE = 1.0  # seconds, when nothing can be accepted and no connection be closed
PATIENCE = 5.0  # seconds, with peers that do not read and threads that do not end


def occupy_standard() -> None:
    """Let nothing else become fd 0, 1 or 2."""
    fd = 0
    while fd < 3:
        fd = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(fd, fd < 3)
    os.close(fd)


# --- Command line


def prepare(settings: Settings) -> "Callable[[Any], Any]":
    """Import the handler as a script of the user's in the current directory would."""
    del sys.argv[1:]
    try:
        sys.path.insert(0, os.getcwd())
    except OSError:
        pass  # the directory was removed
    return load_handler(settings.handler)


def run(settings: Settings) -> int:
    """Serve until told to stop; give the exit status."""
    occupy_standard()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # lines are in the log when they are printed
    # glibc learns from this that blocks of this size come and go; else each large message has
    # its memory paged in again, which costs a third of the time. Not one page is touched here
    bytes(4194304)
    place = open_listener(settings.socket_path, settings.socket_mode)
    remove = place[2]
    install, stop, timed = start_watch(settings.handler_timeout, remove)
    ending: "list[int]" = []
    try:
        call = timed(make_call(prepare(settings), settings.concurrency > 1))
        answer = make_answer(settings, call, ending)
        occupy_standard()
        install()
        serve(settings, place, answer, ending, stop)
    finally:
        remove()
    return max(ending)


def check(settings: Settings) -> int:
    """Import the handler and serve nothing."""
    make_call(prepare(settings), False)
    make_codec(settings.json, False)
    print("asya_runtime: %s can be served" % settings.handler)
    return 0


def probe(settings: Settings) -> int:
    """Exit 0 if somebody listens. A file of the name proves nothing: it survives its process."""
    try:
        try_to_connect(settings.socket_path)
    except OSError as error:
        known = (settings.socket_path, error.strerror, last_refusal())
        print("asya_runtime: not ready: %s: %s%s" % known)
        return 1
    return 0


def last_refusal() -> str:
    """Give what `refuse` left for Kubernetes: a container whose program runs on never shows it."""
    try:
        with open("/dev/termination-log", encoding="utf-8", errors="replace") as stream:
            name, found, line = stream.read().partition("asya_runtime: ")
    except OSError:
        return ""
    return "; " + line.rstrip() if found and not name else ""


def send_once(settings: Settings, files: "list[str]") -> int:
    """Send one message, print the reply, exit 0 if it is a good one."""
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
       asya_runtime.py --ready        exit 0 if it serves, else 1
       asya_runtime.py --call [FILE]  send one message (or standard input), print the reply
"""


def refuse(reason: str) -> int:
    """Say why nothing starts: in the log, and where Kubernetes shows it in the pod's status."""
    line = " ".join(reason.split())[:4000]
    log(line)
    try:  # not created: outside Kubernetes there is none
        fd = os.open("/dev/termination-log", os.O_WRONLY | os.O_TRUNC)
        os.write(fd, ("asya_runtime: %s\n" % line).encode("utf-8", "backslashreplace")[:4096])
        os.close(fd)
    except OSError:
        pass
    return EXIT_REFUSED


def main(arguments: "list[str]", environ: "Mapping[str, str]") -> int:
    """Do what `arguments` say; give the exit status."""
    command, rest = (arguments + [""])[0], arguments[1:]
    try:
        if command in ("--ready", "--call") and len(rest) <= (command == "--call"):
            settings = Settings(environ, only="ASYA_SOCKET_PATH")
            return send_once(settings, rest) if command == "--call" else probe(settings)
        if command in ("", "--check") and not rest:
            return (check if command else run)(Settings(environ))
    except Refused as error:
        return refuse(str(error))
    sys.stderr.write(USAGE)
    return 0 if command in ("-h", "--help") else 64


def leave(code: int) -> None:
    """End the process, though threads of user code may not end."""

    def insist() -> None:
        time.sleep(PATIENCE)
        os._exit(code)

    in_background(insist)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["--ready"]:
        sys.exit(main(sys.argv[1:], os.environ))
    leave(main(sys.argv[1:], os.environ))
