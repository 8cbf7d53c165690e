#!/usr/bin/env python3
"""Serve one Python function of this container on a Unix socket.

    ASYA_HANDLER=my_app.handler.predict python3 asya_runtime.py

README.md beside this file is the contract for clients. A frame has the same form in both
directions; a connection carries any number of them, and each complete frame gets exactly
one reply, whatever the handler does:

     0         4                    4 + N
    +---------+--------------------+
    | N       | N bytes            |    N: big-endian unsigned 32 bits
    +---------+--------------------+    N bytes: one JSON object, UTF-8; or that, a zero byte,
                                        and the bytes of its attachments

Map of this file, from the parts to the whole:

    Library             the standard library as it is before user code runs: `import_library`
    Settings            environment variables, validated once: `Settings`
    State               the records that the sections below share: `Message`, `State`
    Replies             error codes and error replies: `error_reply`, `describe`
    JSON                message bytes to objects, results to reply bytes: `make_codec`
    Attachments         bytes beside JSON, both ways: `AttachmentReader`, `Parts`
    Memory errors       recognize them and free the memory: `make_classify`, `empty_caches`
    Memory limit        memory errors in place of the kernel's kill: `make_memory_limit`
    Handler             import it and call it in any form: `load_handler`, `make_caller`
    Answer              one message to one reply, never an exception: `make_answer`
    Socket file         listen, and publish when ready: `open_listener`
    Signals             SIGTERM, and warnings about slow calls: `start_watch`
    Connections         one generator per connection: `serve_connection`
    Queue               messages for batches and worker threads: `Queue`
    Deadline            end calls that run too long: `Deadline`, `make_enforce_deadline`
    Metrics             measure each step, answer scrapers from a thread: `start_metrics`
    Server              the epoll loop, accepting, draining: `serve`
    Command line        serve, --check, --ready, --call: `main`; as PID 1: `become_init`

Design: an epoll loop on the main thread moves bytes. Each connection is a generator that
waits for events. The handler also runs on the main thread, where it was imported and where
sqlite, signal, asyncio and contextvars expect it; worker threads exist only with
ASYA_CONCURRENCY above 1. Functions share state through closures and small records.

A message takes one of three ways. The usual one is the shortest: its connection calls
`answer` and sends the reply. With batches or workers, connections put messages into a
`Queue`, which forms a `Batch` for each call, and send the replies in the order in which the
messages came. With a deadline and neither of those, the server makes the call for the
connection. A call with a deadline has its batch in `Deadline.began`. At its end the call
removes it there, and after the deadline the watching thread does. The one that succeeds
replies to the messages: so each gets one reply, also when the call never comes back.

User code may do anything to its process. So this file imports what it needs before user code
can run and keeps private copies of those modules; it uses C modules (`_socket`, `_thread`)
where libraries such as gevent replace the Python ones; and it expects an exception at any
point of the main thread, because signal handlers and other threads of user code can raise
one there: `serve_connection` and `serve` are written so that no message gets lost by it.
"""

import sys

if sys.version_info < (3, 9):  # a readable line, not a SyntaxError: this file parses on 3.6
    sys.stderr.write(
        "asya_runtime: requires Python 3.9 or newer; this is %s (%s)\n"
        % (sys.version.split()[0], sys.executable)
    )
    sys.exit(78)

# --- Library: the standard library as it is before user code runs

PRELOADED = set(sys.modules)  # what a script finds loaded
IS_PROBE = __name__ == "__main__" and sys.argv[1:] == ["--ready"]  # which has to be cheap
# The directories of the script and of PYTHONPATH come first in sys.path: files there may be named
# like modules of the standard library. `encodings` is always loaded, from where the rest is too
LIBRARY = [sys.modules["encodings"].__path__[0].rpartition("/")[0]]
LIBRARY += [folder for folder in sys.path if folder.endswith("lib-dynload")]


def import_at_once() -> "Any":
    """Let no import wait until its name is used, when other files may be found, unless the library
    itself asks for that; return a function that undoes it. Up to 3.14, none waits.
    """
    if sys.version_info < (3, 15):
        return int
    before = sys.get_lazy_imports()
    sys.set_lazy_imports("normal")
    return lambda: sys.set_lazy_imports(before)


saved_path, undo = sys.path[:], import_at_once()
sys.path[:] = LIBRARY
try:
    import _socket
    import builtins
    import errno
    import os
    import time

    if not IS_PROBE:
        import _collections  # type: ignore[import-not-found]
        import _queue
        import _signal  # type: ignore[import-not-found]
        import _struct
        import _thread
        import atexit
        import enum
        import faulthandler
        import fcntl
        import gc
        import importlib
        import marshal
        import re
        import resource
        import select
        import stat
        import traceback
        from functools import partial
        from importlib.machinery import PathFinder
        from itertools import repeat, starmap
        from json import encoder as json_encoder
        from json.decoder import JSONDecodeError, JSONDecoder
        from operator import itemgetter
        from operator import sub as subtract

        try:
            import _ctypes
        except ImportError:  # this Python was built without it
            _ctypes = None  # type: ignore[assignment]
finally:
    undo()
    sys.path[:] = saved_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket  # noqa: N812
    from collections.abc import (
        AsyncGenerator,
        Callable,
        Generator,
        Iterable,
        Iterator,
        Mapping,
        Sequence,
    )
    from typing import Any, TypeVar, Union

    T = TypeVar("T")
    Bytes = Union[bytes, bytearray, memoryview]
    Action = Callable[[], None]
    Request = dict[str, object]
    Call = Callable[[Request], object]
    Decode = Callable[["Message"], object]
    Reply = Union[Bytes, "Parts"]
    Encode = Callable[["Message"], Reply]
    Codec = tuple[Decode, Encode, Encode, Encode]
    Answer = Callable[["Message"], Reply]
    AnswerAll = Callable[["Batch"], list[Reply]]
    Conversation = Generator[None, None, None]
else:
    # User code may replace functions of modules, and builtins: below, these names are copies
    for name, module in list(globals().items()):
        if type(module) is type(sys) and module is not sys and name != "__builtins__":
            globals()[name] = type(sys.implementation)(**vars(module))
    globals().update((n, f) for n, f in vars(builtins).items() if not n.startswith("_"))

SIGNAL_MODULE = sys.modules["_signal"]  # see `guard_event_loop`
MODULES, MAX_FLOAT = sys.modules, sys.float_info.max
getrecursionlimit, setrecursionlimit = sys.getrecursionlimit, sys.setrecursionlimit
getrefcount = sys.getrefcount
current_frames = sys._current_frames
CLEAR_ENDS_GENERATORS = sys.version_info < (3, 13)  # frame.clear() does
OWN_MODULES = {name: sys.modules[name] for name in set(sys.modules) - PRELOADED}


def find_user_paths() -> "list[str]":
    """Return the directories that come before the standard library in sys.path."""
    count = sys.path.index(LIBRARY[0]) if LIBRARY[0] in sys.path else 1
    return [os.path.abspath(folder) for folder in sys.path[:count]]


def is_shadowed(name: str, folders: "list[str]") -> bool:
    """Whether one of the directories has a file for a module of the standard library."""
    spec = PathFinder.find_spec(name.partition(".")[0], folders)
    return spec is not None and spec.loader is not None


def unload_shadowed(modules: "Iterable[str]") -> None:
    """Unload modules for which user code has a file, so that its own imports find that."""
    folders = find_user_paths()
    packages = {name.partition(".")[0] for name in modules}
    shadowed = {package for package in packages if is_shadowed(package, folders)}
    for name in modules:
        if name.partition(".")[0] in shadowed:
            sys.modules.pop(name, None)


def import_library(name: str, use: "Callable[[Any], T]") -> "T":
    """Import a module of the standard library, whatever user code has put in its place, and use it.

    What it imports while it is used comes from there too.
    """

    def is_replaced(name: str, module: object) -> bool:
        file = get_attribute(module, "__file__")
        if isinstance(file, str) and file.startswith(LIBRARY[0] + "/"):
            return False
        return is_shadowed(name, LIBRARY)

    module = MODULES.get(name)
    if module is not None and not is_replaced(name, module):
        return use(module)
    replaced = {n: m for n, m in list(MODULES.items()) if is_replaced(n, m)}
    path, before = sys.path[:], set(MODULES)
    for name_of_user in replaced:
        del MODULES[name_of_user]
    MODULES.update(OWN_MODULES)
    sys.path[:] = LIBRARY
    undo = import_at_once()
    try:
        return use(importlib.import_module(name))
    finally:
        undo()
        sys.path[:] = path
        OWN_MODULES.update((n, MODULES[n]) for n in set(MODULES) - before)
        unload_shadowed(set(MODULES) - before)
        MODULES.update(replaced)


def get_attribute(thing: object, name: str) -> "Any":
    """Return an attribute or None, whatever the object's class does when asked."""
    try:
        return getattr(thing, name, None)
    except BaseException:
        return None


def is_a(thing: object, kinds: "type | tuple[type, ...]") -> bool:
    """Do what isinstance() does, without asking the object: its `__class__` may raise."""
    return issubclass(type(thing), kinds)


def name_type(thing: object) -> str:
    """Return the name of an object's class, without asking its metaclass."""
    return str.__str__(read_name(type(thing)))


read_name: "Callable[[type], str]" = type.__dict__["__name__"].__get__


# These ask no class of user code, and let what arrives from outside pass
read_traceback: "Callable[[BaseException], Any]" = BaseException.__dict__["__traceback__"].__get__
read_errno: "Callable[[BaseException], Any]" = OSError.__dict__["errno"].__get__


def is_raised_here(error: BaseException) -> bool:
    """Whether only functions of this file have raised it: user code can raise from outside."""
    trace = read_traceback(error)
    while trace is not None and trace.tb_frame.f_globals is globals():
        trace = trace.tb_next
    return trace is None


def is_of_system(error: BaseException) -> bool:
    """Whether it is the error of a system call of this file.

    A signal handler that writes to a closed pipe raises the same error as a peer that has gone.
    """
    return is_a(error, OSError) and read_errno(error) is not None and is_raised_here(error)


def store(table: "dict[int, Any]", key: int, results: "Iterator[Any]") -> None:
    """Store the next of `results` in a table, in one step in C.

    An exception that user code raises from outside cannot come in between and take away what a
    call has returned.
    """
    table.update(zip((key,), results))  # noqa: B905


VERSION = "0.2.0"  # of the injector's package; written by `make sync`
EXIT_CONFIG = 78  # EX_CONFIG: a setting, the socket path or the handler is wrong
# EX_TEMPFAIL: a call does not end, memory has leaked, or descriptors of the server are closed
EXIT_BROKEN = 75
EXIT_POISONED = 70  # EX_SOFTWARE: the GPU context is lost; only a new process helps

# --- Settings: one table, read once


class StartupError(Exception):
    """The process cannot start. The text is one line: what is wrong and how to fix it."""


def make_parser(
    rule: str, pattern: str, read: "Callable[[str], Any]" = str, low: float = 0, high: float = 0
) -> "Callable[[str], Any]":
    """Return a parser for texts that match `pattern`; `high`: the value is from `low` to `high`."""

    def parse(text: str) -> "Any":
        value = read(text) if re.fullmatch(pattern, text) else None
        if value is None or (high and not low <= value <= high):
            raise ValueError("must be " + rule)
        return value

    return parse


def make_integer_parser(low: int, high: int) -> "Callable[[str], Any]":
    """Return a parser for whole numbers from `low` to `high`."""
    return make_parser("a whole number from %d to %d" % (low, high), "[0-9]{1,20}", int, low, high)


def make_seconds_parser(
    rule: str, low: float, high: float = sys.float_info.max
) -> "Callable[[str], Any]":
    """Return a parser for finite seconds from `low` to `high`; `rule` says that in words."""
    number = r"(?i)[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
    return make_parser("a number of seconds, " + rule, number, float, low, high)


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
LEAST_LEFT = 16777216  # bytes of memory before a call: with less, it would fail


def parse_memory_limit(text: str) -> "int | float":
    """Return a number of bytes, 0 for no limit, or a share of the container's limit as a float."""
    match = re.fullmatch("([0-9]{1,15})(%?)", text)
    number = int(match[1]) if match else -1
    if match and match[2] and 1 <= number <= 100:
        return number / 100
    if match and not match[2] and (number == 0 or number >= LEAST_LEFT):
        return number
    raise ValueError("must be 0, at least %d bytes, or 1%% to 100%%" % LEAST_LEFT)


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
    ("ASYA_JSON", "auto", make_parser("stdlib, orjson or auto", "stdlib|orjson|auto")),
    ("ASYA_BATCH_SIZE", "1", make_integer_parser(1, 1024)),
    ("ASYA_BATCH_WAIT", "0", make_seconds_parser("at least 0", 0)),
    ("ASYA_HANDLER_DEADLINE", "0", make_seconds_parser("at least 0", 0)),
    ("ASYA_MEMORY_LIMIT", "0", parse_memory_limit),
    ("ASYA_METRICS_PORT", "0", make_integer_parser(0, 65535)),
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

    __slots__ = ("arrived", "body", "connection", "reads_attachments", "reply", "result")
    body: "Bytes | None"  # as received
    result: "Any"  # what the handler returned
    reply: "Reply | None"  # for messages in the queue

    def __init__(self, connection: "Any" = None) -> None:
        self.connection = connection  # None where the message is not in the queue
        self.body = self.result = self.reply = None
        self.reads_attachments = False  # its sender does, as the zero byte behind the JSON says
        self.arrived = 0.0  # in the queue


ignore: "Callable[[Any], object]" = bool  # in C, so no exception from outside can arrive in it


class State:
    """The state of the process, shared by signals, answers and the server."""

    __slots__ = (
        "batch_limit",
        "connections",
        "exit_code",
        "exit_reason",
        "forked",
        "json",
        "limited_at",
        "memory_limit",
        "note_memory_error",
        "note_reply",
        "queue",
        "renew_deadline",
        "stopping",
        "wake",
    )

    def __init__(self) -> None:
        self.batch_limit = 1024  # messages that fit into memory together, by what has failed
        self.limited_at = 0.0  # when the limit was set
        self.stopping = False  # SIGTERM or SIGINT was received
        self.exit_reason = ""  # for the log, after the answers
        self.exit_code = 0  # the process has to be restarted: no call is made any more
        self.forked = False  # this is a child process that user code forked
        self.wake: "Action | None" = None  # interrupts the server's wait; None before it serves
        self.json = ""  # which library, and why
        self.memory_limit = MemoryLimit()
        self.connections: "dict[int, Connection]" = {}  # by fd, while it serves
        self.queue: "Queue | None" = None
        self.renew_deadline: "Callable[[Batch], object]" = ignore
        # For the metrics: replies that no call has made, and kinds of memory errors
        self.note_reply: "Callable[[Reply], object]" = ignore
        self.note_memory_error: "Callable[[str], object]" = ignore


LOG_LIMIT = 20000  # characters
# What a terminal or a reader of logs would act on: controls, and marks that reverse text
CONTROLS = {
    number: "\\u%04x" % number
    for marks in ((0, 32), (127, 160), (0x2028, 0x202F), (0x2066, 0x206A))
    for number in range(*marks)
}


def log(text: str) -> None:
    """Write one line to fd 2: user code may have replaced or closed `sys.stderr`.

    Further lines are indented, so that no text of others passes for a line of its own.
    """
    lines = [line.translate(CONTROLS) for line in text[:LOG_LIMIT].split("\n")]
    try:
        os.write(2, ("asya_runtime: %s\n" % "\n  ".join(lines)).encode("utf-8", "backslashreplace"))
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
MESSAGE_LIMIT, KIND_LIMIT = 2000, 200  # characters of a text, and of the name of a class
FRAME_LIMIT = 4294967295
# Built while there is memory, for when nothing else can be built.
OUT_OF_MEMORY = (
    b'{"status":"error","error":"oom_error","message":"out of memory","type":"MemoryError",'
    b'"severity":"recoverable","retry_after":30}'
)
RESTARTING = (
    b'{"status":"error","error":"processing_error","message":"the process is restarting",'
    b'"severity":"recoverable","retry_after":1}'
)
UNPRINTABLE = (
    b'{"status":"error","error":"processing_error",'
    b'"message":"the handler raised an exception that cannot be printed","severity":"fatal"}'
)


if not IS_PROBE:
    escape = json_encoder.encode_basestring_ascii
CONTROLS_IN_REPLIES = {number: CONTROLS[number] for number in CONTROLS if number not in (9, 10)}


def error_reply(
    code: str, message: str, kind: str = "", severity: str = "", retry_after: object = None
) -> bytes:
    """Build an error reply. `severity` and `retry_after` override those of the code."""
    usual, seconds = CODES[code]
    if retry_after is None and severity in ("", usual):
        retry_after = seconds
    fields = {
        "status": "error",
        "error": code,
        "message": clean(message[:MESSAGE_LIMIT])[:MESSAGE_LIMIT],
    }
    fields.update(type=clean(kind[:KIND_LIMIT])[:KIND_LIMIT], severity=severity or usual)
    parts = ['"%s":%s' % (name, escape(value)) for name, value in fields.items() if value]
    if retry_after is not None:
        parts.append('"retry_after":%r' % retry_after)
    return ("{" + ",".join(parts) + "}").encode("ascii")


def clean(text: str) -> str:
    """Join pairs of surrogates and replace lone ones: strict parsers reject them.

    Escape controls except tabs and line ends: clients write the text to terminals and logs.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.translate(CONTROLS_IN_REPLIES)


def describe(code: str, error: BaseException, prefix: str = "") -> bytes:
    """Build the reply for an exception. Its `severity` and `retry_after`, if valid, win."""
    kind, severity = name_type(error), get_attribute(error, "severity")
    retry_after = get_attribute(error, "retry_after")
    if not isinstance(severity, str) or severity not in ("recoverable", "fatal"):
        severity = ""  # other libraries use these names for other things
    if type(retry_after) not in (int, float) or not 0 <= retry_after <= MAX_FLOAT:
        retry_after = None
    message = prefix + (get_text(error) or kind)
    return error_reply(code, message, kind, severity, retry_after)


def get_text(error: BaseException) -> str:
    """Return the text of an exception, "" if it has none. Raises only MemoryError."""
    try:
        return str.__str__(str(error))  # which may be of a class of user code
    except MemoryError:
        raise
    except BaseException:
        return ""


# --- JSON

ORJSON_SINCE = (3, 9, 15)  # older ones crash on a message that is nested deeply
MEMORY_IS_LIMITED = "standard library, because memory is limited"
DEEP = 40  # levels of a small result; orjson 3.12 and 3.13 corrupt memory from 1,000 nested tuples
GC_PAUSE = 65536  # bytes of a message that is decoded without collecting garbage in between
SEARCH_TIME = 1.0  # seconds for finding the value that is not JSON-serializable
KEY_LIMIT, PLACE_LIMIT = 60, 1500  # characters of a key, and of a whole path, in an error
# As marshal writes them
INFINITY, MINUS_INFINITY = b"\0\0\0\0\0\0\xf0\x7f", b"\0\0\0\0\0\0\xf0\xff"
DIGITS = b" " * 46 + b". " + b"0" * 10 + b" " * 198  # a table for translate()
LARGE_INTEGER = b" " + b"0" * 19
NO_ESCAPES = bytes(set(range(32, 127)) - set(b'"\\'))  # needed in JSON, for these characters
LONG_TEXT = 200  # characters from which `escape_long` is faster than `escape`


def choose_json(choice: str, memory_limit: float) -> "tuple[Any, str]":
    """Return orjson, or None for the standard library; and what the start line says about it.

    `auto` takes orjson if it is installed and keeps the contract. Where its memory is limited, it
    does not: it crashes, or calls a message bad that it cannot decode.
    """
    if choice == "stdlib":
        return None, "standard library"
    if memory_limit:
        if choice == "auto":
            return None, "standard library, because ASYA_MEMORY_LIMIT is set"
        text = "ASYA_JSON=orjson: it crashes when memory is limited; set ASYA_JSON=auto"
        raise StartupError(text + ", or ASYA_MEMORY_LIMIT=0")
    if choice == "auto" and is_memory_limited():
        return None, MEMORY_IS_LIMITED
    try:
        orjson = import_orjson()
        option = get_orjson_option(orjson)
        version = tuple(map(int, re.findall("[0-9]+", orjson.__version__)[:3]))
        if orjson.loads(orjson.dumps([1], None, option)) != [1]:
            raise ValueError
    except Exception:  # also a file of that name that is something else
        reason, fix = "orjson is not installed", "install it"
    else:
        if version >= ORJSON_SINCE:
            return orjson, "orjson %s" % orjson.__version__
        reason = "orjson %s is too old" % str(orjson.__version__)[:20]
        fix = "install %d.%d.%d or newer" % ORJSON_SINCE
    if choice == "auto":
        return None, "standard library, because " + reason
    raise StartupError("ASYA_JSON=orjson: %s; %s or set ASYA_JSON=auto" % (reason, fix))


def is_memory_limited() -> bool:
    """Whether memory may be refused to this process: orjson ends in SIGSEGV there."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return limits != [resource.RLIM_INFINITY] * 2


def import_orjson() -> "Any":
    """Import it with the standard library before the files of user code: it crashes on those."""
    path, before = sys.path[:], set(MODULES)
    sys.path[:] = LIBRARY + path
    try:
        return importlib.import_module("orjson")
    finally:
        sys.path[:] = path
        own = [n for n in set(MODULES) - before if n.partition(".")[0] != "orjson"]
        OWN_MODULES.update((name, MODULES[name]) for name in own)
        unload_shadowed(own)


def get_orjson_option(orjson: "Any") -> int:
    """Return the option that leaves to `simplify` what orjson would write in its own way."""
    option: int = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS
    return option | orjson.OPT_PASSTHROUGH_DATETIME  # type: ignore[no-any-return]


def make_codec(orjson: "Any", threads: bool, is_queued: bool = False) -> "Codec":
    """Return `decode(message)` and `encode(message)`; the latter for large messages, and for those
    whose sender reads attachments.

    `decode` consumes the body and returns the request. `encode` consumes the result and returns
    the complete success reply. `orjson`: that module, or None for the standard library.
    `is_queued`: a reply may wait while the handler runs again.
    """

    def reject_constant(word: str) -> object:
        raise ValueError("%s is not JSON" % word)

    def parse_integer(digits: str) -> int:
        if len(digits) > 4300:
            raise ValueError("integer of %d digits" % len(digits))
        return int(digits)

    def parse_float(text: str) -> float:
        number = float(text)
        if number - number:  # infinity
            raise OverflowError
        return number

    def parse_finite(text: str) -> float:
        try:
            return parse_float(text)
        except OverflowError:
            raise ValueError("number too large for a double") from None

    # Early 3.9 and 3.10 have no limit, and need time quadratic in the number of digits
    parse_int = None if hasattr(sys, "set_int_max_str_digits") else parse_integer
    # Calling a function for each float doubles the time of many; searching all for infinity
    # afterwards costs more where there are few
    scan_many, scan_few = (
        JSONDecoder(
            parse_constant=reject_constant, parse_int=parse_int, parse_float=parse
        ).scan_once  # type: ignore[attr-defined]
        for parse in (None, parse_float)
    )
    form = (None, ":", ",", False, False, False)
    parents: "dict[int, object]" = {}  # of the value being encoded: detects circular references
    c_make_encoder = get_attribute(json_encoder, "c_make_encoder")

    def make_encoder(write: "Callable[[str], str]") -> "Callable[[Any, bool], Iterable[str]]":
        """Return a function of a value and False; `write` encodes strings."""
        if not c_make_encoder:  # an interpreter without the accelerator
            return json_encoder.JSONEncoder(
                separators=(",", ":"), allow_nan=False, default=simplify
            ).iterencode

        def make_chunks(value: object, level: bool) -> "Iterable[str]":
            return c_make_encoder({}, simplify, write, *form)(value, level)  # type: ignore[no-any-return]

        return make_chunks if threads else c_make_encoder(parents, simplify, write, *form)

    make_usual, make_long = make_encoder(escape), make_encoder(escape_long)
    make_chunks = make_usual

    def scan_from(text: str, start: int, scan: "Callable[[str, int], tuple[object, int]]") -> "Any":
        try:
            return scan(text, start)
        except StopIteration as stop:
            raise JSONDecodeError("Expecting value", text, stop.value) from None

    @bound_recursion
    def decode(message: Message) -> object:
        body: "Any" = message.body
        size = len(body)
        if size >= GC_PAUSE and gc.isenabled():
            body = None  # its memory may be needed
            return run_without_collection(decode, message)
        if 0 in body if type(body) is bytes else find_zero(body) >= 0:
            body = None
            return decode_attached(message)
        message.reads_attachments = False
        text = str(body, "utf-8")
        if size > POOLED_BUFFER:
            message.body = body = None
        many = "." in text and is_mostly_digits(text)
        scan = scan_many if many else scan_few
        try:
            try:
                value, end = scan(text, 0)
            except StopIteration:
                value, end = scan_from(text, find_text(text, 0), scan)
        except OverflowError:
            many = True
            value, end = scan_from(text, find_text(text, 0), scan_many)
        if end != len(text):
            check_rest(text, end)
        if many and may_hold_infinity(value):
            place, colon, what = find_unencodable(value).rpartition(": ")
            if colon:
                place = " at " + place.lstrip(".") if what in ("inf", "-inf") else ""
                raise ValueError("number too large for a double" + place)
        return value

    def make_attachment_reader() -> "tuple[AttachmentReader, Callable[[str, int], Any]]":
        reader = AttachmentReader()
        decoder = JSONDecoder(
            object_pairs_hook=reader.read_object,
            parse_constant=reject_constant,
            parse_int=parse_int,
            parse_float=parse_finite,
        )
        return reader, decoder.scan_once  # type: ignore[attr-defined]

    main_reader = make_attachment_reader()  # to make it takes as long as to read short JSON

    def decode_attached(message: Message) -> object:
        """Decode JSON before a zero byte, with the bytes behind it in their places."""
        message.reads_attachments = True
        body: "Any" = message.body
        end = find_zero(body)
        view = memoryview(body)
        reader, scan = make_attachment_reader() if threads else main_reader
        text = str(view[:end], "utf-8")
        try:
            reader.rest, reader.at = view[end + 1 :].toreadonly(), 0
            value, at = scan_from(text, find_text(text, 0), scan)
            check_rest(text, at)
            reader.check_end()
        finally:
            reader.rest = None  # so that the buffer can be used again
        if len(body) > POOLED_BUFFER:
            message.body = None
        return value

    @bound_recursion
    def encode(message: Message) -> bytes:
        """Encode a result, and choose how to encode the next one, which is probably like it."""
        nonlocal make_chunks
        try:
            text: "Any" = "".join(make_chunks(message.result, False))
        except BaseException:
            parents.clear()
            raise
        if len(text) > PIECE:
            message.result = TAKEN
        if len(text) > LONG_TEXT:  # counting the strings would take longer than a look at one
            at = len(text) // 2
            is_long = text.find('"', at) - text.rfind('"', 0, at) > 2 * LONG_TEXT
            make_chunks = make_long if is_long and "\\" not in text else make_usual
        json, text = text.encode("ascii"), None  # its memory may be needed
        return b"".join((b'{"status":"ok","result":', json, b"}"))

    @bound_recursion
    def encode_large(message: Message) -> "Bytes":
        """Escape long strings piece by piece: holds one of them, its copy and the reply."""
        long: "list[str]" = []

        def defer(text: str) -> str:
            if len(text) < PIECE or type(text) is not str:
                return escape_long(text)
            long.append(text)
            return "\0"  # never part of JSON

        encode_outline = c_make_encoder({}, simplify, defer, *form)
        outline = "".join(encode_outline({"status": "ok", "result": message.result}, 0)).split("\0")
        message.result = TAKEN
        reply = bytearray()
        for part in outline:
            reply += part.encode("ascii")
            if long:
                text = long.pop(0)
                reply += b'"'
                for at in range(0, len(text), PIECE):
                    reply += escape_long(text[at : at + PIECE])[1:-1].encode("ascii")
                reply += b'"'
        return reply

    @bound_recursion
    def encode_attached(message: Message) -> "Reply":
        """Encode for a sender that reads attachments: bytes in the result follow the JSON."""
        pieces: "list[Bytes]" = []

        def attach(value: "Any") -> object:
            if not issubclass(type(value), BYTES):
                return simplify(value)
            piece = get_piece(value, is_queued)
            pieces.append(piece)
            return {ATTACHMENT: len(piece)}

        json = dump(message.result, attach, pieces)
        if json.count(ATTACHMENT_START) != len(pieces) and count_attachments(json) != len(pieces):
            raise ValueError("the result looks as if it had attachments")
        return join_pieces(json, pieces) if pieces else json

    def dump_text(result: object, default: "Callable[[Any], Any]", pieces: "list[Bytes]") -> bytes:
        """Encode a reply, and let `default` collect pieces."""
        pieces.clear()
        reply = {"status": "ok", "result": result}
        if not c_make_encoder:
            return (
                json_encoder.JSONEncoder(separators=(",", ":"), allow_nan=False, default=default)
                .encode(reply)
                .encode("ascii")
            )
        return "".join(c_make_encoder({}, default, escape, *form)(reply, 0)).encode("ascii")

    dump = dump_text
    if orjson is None:
        return decode, encode, encode_large if c_make_encoder else encode, encode_attached
    dumps, loads, option = orjson.dumps, orjson.loads, get_orjson_option(orjson)

    def dump_orjson(
        result: object, default: "Callable[[Any], Any]", pieces: "list[Bytes]"
    ) -> bytes:
        """Do the same as `encode_orjson`."""
        left = count_down_parts(result, 64)
        if left != DEEP_RESULT:
            pieces.clear()
            try:
                json: bytes = dumps({"status": "ok", "result": result}, default, option)
                if left >= 0 or json.rfind(b"null") < 0:
                    return json
            except TypeError:
                pass
        return dump_text(result, default, pieces)

    dump = dump_orjson

    @bound_recursion
    def encode_orjson(message: Message) -> bytes:
        left = count_down_parts(message.result, 64)
        if left == DEEP_RESULT:
            return encode(message)
        try:
            reply: bytes = dumps({"status": "ok", "result": message.result}, simplify, option)
        except TypeError:
            return encode(message)  # large integers, other keys; or it raises the right error
        # orjson writes NaN as null: where there may be one, the standard library decides
        if left >= 0 or reply.rfind(b"null") < 0:  # faster than in
            return reply
        return encode(message)

    def decode_orjson(message: Message) -> object:
        body: "Any" = message.body
        if len(body) >= GC_PAUSE and gc.isenabled():
            return run_without_collection(decode_orjson, message)
        if 0 in body if type(body) is bytes else find_zero(body) >= 0:
            return decode_attached_orjson(message)
        message.reads_attachments = False
        try:
            value = loads(body)
        except ValueError:
            return decode(message)  # lone surrogates, deep nesting; or it raises the right error
        if type(body) is bytes and b"00" not in body[::9].translate(DIGITS):
            return value  # as below, for most messages
        # orjson makes floats of large integers: the standard library decides
        return decode(message) if may_hold_large_integer(body) else value

    def decode_attached_orjson(message: Message) -> object:
        """Decode a message without attachments with orjson, any other with `decode_attached`.

        orjson does not report equal keys. But then its value has fewer colons than the message.
        """
        body: "Any" = message.body
        data, end = (body if type(body) is bytes else body.obj), find_zero(body)
        has_bytes = end != len(body) - 1 or data.find(b'"$bytes"', 0, end) >= 0
        if not has_bytes and data.find(b"\\u", 0, end) < 0:  # which could be a colon
            try:
                message.body = body[:end]
                value = decode_orjson(message)
                if dumps(value).count(b":") == data.count(b":", 0, end):
                    return value
            except (TypeError, ValueError):
                pass  # it cannot write what the standard library has read; or that has the error
            finally:
                message.reads_attachments = True
            message.body = body
        return decode(message)

    return decode_orjson, encode_orjson, encode_orjson, encode_attached


OWN_ERRORS = (ValueError, TypeError, RecursionError, OverflowError, MemoryError)
MAX_RETRIES = 3  # of decoding and encoding, after exceptions of user code from outside
TAKEN = GeneratorExit  # in the place of a result that has been encoded; it is not JSON
LARGE_RESULT, DEEP_RESULT = -1, -2


def escape_long(text: str) -> str:
    """Do the same as `escape`, in half of the time or less where no character needs an escape."""
    if len(text) < LONG_TEXT or type(text) is not str or not text.isascii():
        return escape(text)
    return escape(text) if text.encode().translate(None, NO_ESCAPES) else '"%s"' % text


def run_without_collection(decode: "Decode", message: Message) -> object:
    """Decode without collecting garbage: there is none, and the search takes most of the time."""
    try:
        gc.disable()
        return decode(message)
    finally:
        gc.enable()


def may_hold_infinity(value: "Any") -> bool:
    """Whether there may be an infinite float in a value of JSON's types; seldom wrong."""
    try:
        data = marshal.dumps(value, 2)  # faster than any other walk through it
    except ValueError:  # nested too deeply
        return True
    return INFINITY in data or MINUS_INFINITY in data


def is_mostly_digits(text: str) -> bool:
    """Whether most of a sample of the characters are digits."""
    sample = text[::61]
    return len(sample.encode().translate(None, b"0123456789")) * 2 < len(sample)


def find_text(text: str, start: int) -> int:
    """Return the position of the first character that is not white space in JSON."""
    while text[start : start + 64].strip(" \t\r\n") == "" and start < len(text):
        start += 64
    rest = text[start : start + 64]
    return min(start + len(rest) - len(rest.lstrip(" \t\r\n")), len(text))


def check_rest(text: str, start: int) -> None:
    """Raise JSONDecodeError if more than white space follows a value."""
    end = find_text(text, start)
    if end != len(text):
        raise JSONDecodeError("Extra data", text, end)


def may_hold_large_integer(body: "Bytes") -> bool:
    """Whether a message may have an integer of 19 digits: only those exceed 64 bits."""
    for at in range(0, len(body), PIECE):
        piece = bytes(body[at : at + PIECE + 20])
        # Of every 9th byte, 19 digits hold two in a row: most messages need no closer look
        if b"00" in piece[::9].translate(DIGITS) and LARGE_INTEGER in piece.translate(DIGITS):
            return True
    return False


def count_down_parts(value: "Any", budget: int, level: int = 0) -> int:
    """Return what is left of `budget` after all parts of a result.

    LARGE_RESULT when the budget is used up, because the answer would cost more than it saves, and
    for floats and all that is not JSON's. DEEP_RESULT when it is nested too deeply for orjson.
    """
    budget -= 1
    kind = type(value)
    if kind is dict or kind is list or kind is tuple:
        if level > DEEP:
            return DEEP_RESULT
        for item in value.values() if kind is dict else value:
            if budget < 0:
                return budget
            budget = count_down_parts(item, budget, level + 1)
        return budget
    return budget if value is None or kind is str or kind is int or kind is bool else LARGE_RESULT


def bound_recursion(function: "Callable[[Any], T]") -> "Callable[[Any], T]":
    """Bound recursion in C: before 3.12 its limit is the one that user code may have raised."""
    if sys.version_info >= (3, 12):
        return function

    def call(argument: object) -> "T":
        limit = getrecursionlimit()
        if limit <= 5000:
            return function(argument)
        setrecursionlimit(5000)
        try:
            return function(argument)
        finally:
            setrecursionlimit(limit)

    return call


def simplify(value: "Any") -> object:
    """Return what to write for a value that is not of JSON's own types. Raises TypeError for most.

    Frameworks are not imported: their values are known by their methods, and the classes of the
    standard library by their names.
    """
    kind = type(value)
    for base, copy in BASES:  # orjson passes on subclasses of these, such as named tuples
        if issubclass(kind, base):
            return copy(value)
    if issubclass(kind, BYTES):
        raise unfit(value)
    if issubclass(kind, enum.Enum):
        return value.value
    if callable(get_attribute(kind, "model_dump")):
        return value.model_dump(mode="json")
    fields = get_attribute(kind, "__dataclass_fields__")
    if type(fields) is dict:
        own = [n for n, field in fields.items() if repr(field._field_type) == "_FIELD"]
        return {name: getattr(value, name) for name in own}
    if callable(get_attribute(kind, "tolist")):
        items = None if holds_dates(get_attribute(value, "dtype")) else value.tolist()
        if type(items) is kind or items is None:
            raise unfit(value)
        return items
    for base in get_bases(kind):
        form = FORMS.get("%s.%s" % (str(base.__module__).partition(".")[0], base.__name__))
        if form is not None:
            text = form(value)
            if text is None:
                break
            return text
    raise unfit(value)


def unfit(value: object) -> TypeError:
    """Return the error for a value that cannot be written as JSON."""
    return TypeError("Object of type %s is not JSON serializable" % name_type(value))


def copy_dict(value: "Any") -> "dict[object, object]":
    """Return the items of a subclass of dict, which may have its own."""
    items = list(value.items())
    result = dict(items)
    if len(result) != len(items):
        raise TypeError  # the standard library writes all of them
    return result


def holds_dates(dtype: "Any") -> bool:
    """Whether a dtype of NumPy or pandas is of dates or durations: a list has them as integers."""
    parts = get_attribute(dtype, "fields") or {}
    base = get_attribute(dtype, "base")
    return (
        get_attribute(dtype, "kind") in ("M", "m")
        or any(holds_dates(part[0]) for part in parts.values())
        or (base is not dtype and holds_dates(base))
    )


def find_unencodable(value: object, reads_attachments: bool = False) -> str:
    """Name the first value that is not JSON-serializable, by its path: `.items[3].score: nan`.

    `reads_attachments`: bytes may be sent, and what looks like them may not.
    """
    latest = time.monotonic() + SEARCH_TIME

    def find(value: "Any", parents: "tuple[int, ...]") -> str:
        if value is None or isinstance(value, (str, int)):
            return ""
        if isinstance(value, float):
            return "" if value - value == 0 else ": " + float.__repr__(value)
        if id(value) in parents:
            return ": contains itself"
        if len(parents) >= 400:
            return ": nested too deeply"
        parents += (id(value),)
        if isinstance(value, OBJECTS):
            form, items = ".%s", value.items()
            if reads_attachments and len(value) == 1 and ATTACHMENT in value:
                return ": " + LOOKS_ATTACHED
        elif isinstance(value, (list, tuple)):
            form, items = "[%s]", enumerate(value)  # type: ignore[assignment]
        elif issubclass(type(value), BYTES):
            reason = find_fault(value) if reads_attachments else NOT_READ
            return ": %s; %s" % (name_class(type(value)), reason) if reason else ""
        else:
            try:
                simple = simplify(value)
            except MemoryError:
                raise
            except Exception:  # of a conversion too, such as that of a model
                return ": " + name_class(type(value))
            return find(simple, parents)
        for key, item in items:
            if key is not None and not isinstance(key, (str, int, float)):
                return ": key of type " + name_class(type(key))
            if isinstance(key, float) and key - key:
                return ": key " + float.__repr__(key)
            late = time.monotonic() > latest
            found = ": not found before it in %g s" % SEARCH_TIME if late else find(item, parents)
            if found:
                return form % show_key(key) + found
        return ""

    path, colon, what = find(value, ()).rpartition(": ")
    if len(path) > PLACE_LIMIT:
        path = path[: PLACE_LIMIT // 2] + "..." + path[-PLACE_LIMIT // 2 :]
    return path + colon + what


def show_key(key: object) -> str:
    """Return a key of a dict or list for an error: it may be of a payload."""
    text = str.__str__(key) if isinstance(key, str) else "%s" % key
    return text[:KEY_LIMIT].translate(CONTROLS) + ("..." if len(text) > KEY_LIMIT else "")


def name_class(kind: type) -> str:
    """Return the name of a class with its module, unless that is builtins: `numpy.bool`."""
    module, name = kind.__module__, kind.__qualname__
    return (name if module == "builtins" else "%s.%s" % (module, name))[:KIND_LIMIT]


get_bases: "Callable[[type], tuple[type, ...]]" = type.__dict__["__mro__"].__get__
frozen = get_attribute(builtins, "frozendict")  # 3.15
OBJECTS: "tuple[type[dict[Any, Any]], ...]" = (dict, frozen) if frozen else (dict,)
BASES: "tuple[tuple[type, Callable[[Any], Any]], ...]" = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (list, list),  # a subclass may have its own items, as the standard library writes
    (tuple, list),
    *((kind, copy_dict) for kind in OBJECTS),
)


def format_date(value: "Any") -> "str | None":
    """Return a date or time in ISO 8601; None for pandas' NaT."""
    return value.isoformat() if value == value else None


def format_decimal(value: "Any") -> "str | None":
    """Return a decimal number as text; None for NaN and infinity."""
    return str(value) if value.is_finite() else None


FORMS: "dict[str, Callable[[Any], str | None]]" = {
    "datetime.datetime": format_date,
    "datetime.date": format_date,
    "datetime.time": format_date,
    "uuid.UUID": str,
    "decimal.Decimal": format_decimal,
    "pathlib.PurePath": str,
}


# --- Attachments

ATTACHMENT, ATTACHMENT_START = "$bytes", b'{"$bytes":'
ALIGNMENT = 16  # of the first attachment, for arrays of any type
BYTES = (bytes, bytearray, memoryview)
MOST_PIECES = 512  # in one system call, which takes 1024
NOT_READ = "clients get bytes if they send a zero byte after the JSON of the request"
LOOKS_ATTACHED = 'an object with the single key "$bytes", which would stand for an attachment'


class ReceiveBuffer(bytearray):
    """What messages are received into. Attachments are views of it, so it is written again only
    when nothing looks at it any more: see `take_buffer`.
    """

    __slots__ = ()


def take_buffer(pool: "list[ReceiveBuffer]") -> ReceiveBuffer:
    """Return the buffer of a pool if user code keeps nothing of it, else a new one."""
    if pool and getrefcount(pool[0]) == UNUSED:
        return pool.pop()
    return ReceiveBuffer(FIRST_BUFFER)


first_pool = [ReceiveBuffer()]
UNUSED = getrefcount(first_pool[0])  # in a pool, and nowhere else


def find_zero(body: "Any") -> int:
    """Return the place of the first zero byte of a message, or -1: JSON has none."""
    if type(body) is memoryview:
        return body.obj.find(0, 0, len(body))  # type: ignore[no-any-return, attr-defined]
    return body.find(0)  # type: ignore[no-any-return]


class AttachmentReader:
    """Puts attachments into the places of `{"$bytes": n}` while JSON is parsed."""

    __slots__ = ("at", "rest")

    def __init__(self) -> None:
        self.rest: "Any" = None  # the bytes of all attachments of a message
        self.at = 0  # in it, of the next one

    def read_object(self, pairs: "list[tuple[str, Any]]") -> object:
        """Return the object of these pairs, or the attachment for which it stands."""
        if len(pairs) == 1 and pairs[0][0] == ATTACHMENT:
            size, start = pairs[0][1], self.at
            if type(size) is not int or size < 0:
                raise ValueError('{"$bytes": n}: n must be a whole number from 0')
            left = len(self.rest) - start
            if size > left:
                text = '{"$bytes": n} stands for %s bytes, but only %d of %d are left'
                what = size if size <= FRAME_LIMIT else "too many"
                raise ValueError(text % (what, left, len(self.rest)))
            self.at += size
            return self.rest[start : self.at]
        value = dict(pairs)
        if len(value) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError('the key "%s" appears twice in an object' % show_key(twice))
        return value

    def check_end(self) -> None:
        """Raise ValueError if there are more bytes than were announced."""
        if self.at != len(self.rest):
            text = 'objects {"$bytes": n} stand for %d bytes, but %d bytes follow'
            raise ValueError(text % (self.at, len(self.rest)))


def find_fault(value: "Any") -> str:
    """Say why bytes cannot be sent as an attachment, or return ""."""
    try:
        if memoryview(value).c_contiguous:
            return ""
    except ValueError:
        return "it has been released"
    return "it is not C-contiguous, copy it with bytes()"


def is_constant(view: memoryview) -> bool:
    """Whether nobody writes to the memory of a view. Of a receive buffer, nobody does."""
    return view.readonly and isinstance(view.obj, (bytes, ReceiveBuffer))


def get_piece(value: "Any", is_queued: bool) -> "Bytes":
    """Return bytes to be sent, as they are; as a copy if they could change before that."""
    if type(value) is bytes:
        return value
    view = memoryview(value)
    if not view.c_contiguous:
        raise unfit(value)
    if is_queued and not is_constant(view):
        return view.tobytes()
    try:
        return view.cast("B")
    except TypeError:  # a format of other libraries; or nothing in several dimensions
        return view.tobytes()


def count_attachments(json: bytes) -> int:
    """Count the objects in JSON that stand for attachments."""
    count = 0

    def read_object(pairs: "list[tuple[str, Any]]") -> None:
        nonlocal count
        count += len(pairs) == 1 and pairs[0][0] == ATTACHMENT

    JSONDecoder(object_pairs_hook=read_object).decode(str(json, "utf-8"))
    return count


def join_pieces(json: bytes, pieces: "list[Bytes]") -> "Reply":
    """Return a reply with attachments, as bytes if it is small."""
    head = b"%s%s\0" % (json, b" " * (-(len(json) + 1) % ALIGNMENT))
    if len(head) + sum(map(len, pieces)) <= FIRST_BUFFER:
        return b"".join([head, *pieces])
    return Parts([head, *filter(len, pieces)])


class Parts:
    """A reply with attachments that are not copied."""

    __slots__ = ("at", "changing", "pieces", "starts")

    def __init__(self, pieces: "list[Bytes]") -> None:
        self.pieces = pieces
        self.starts = [0]  # of each piece, and the end
        for piece in pieces:
            self.starts.append(self.starts[-1] + len(piece))
        self.at = 0  # the first piece that has not been sent
        # What the handler may change when it runs again
        self.changing = [
            number
            for number, piece in enumerate(pieces)
            if type(piece) is memoryview and not is_constant(piece)
        ]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, place: "Any") -> "Any":
        return self.pieces[0][place]

    def get_rest(self, skip: int) -> "list[Bytes]":
        """Return what is to be sent next, when `skip` bytes have been sent."""
        while self.starts[self.at + 1] <= skip:
            self.at += 1
        first = memoryview(self.pieces[self.at])[skip - self.starts[self.at] :]
        return [first, *self.pieces[self.at + 1 : self.at + MOST_PIECES]]

    def keep(self) -> None:
        """Copy what has not been sent and may change. May be repeated after an exception."""
        for number in self.changing:
            if number >= self.at and type(self.pieces[number]) is memoryview:
                self.pieces[number] = self.pieces[number].tobytes()  # type: ignore[union-attr]
        self.changing = []


def get_rest(head: bytes, tail: "Reply", sent: int) -> "tuple[list[Bytes], int]":
    """Return what is to be sent next of a reply, when `sent` bytes have been sent, and its size."""
    rest: "list[Bytes]" = [head[sent:]] if sent < len(head) else []
    skip = max(0, sent - len(head))
    rest += tail.get_rest(skip) if type(tail) is Parts else [memoryview(tail)[skip:]]  # type: ignore[arg-type]
    size = 0
    for number, piece in enumerate(rest):
        if size + len(piece) >= PIECE:
            rest[number:] = [memoryview(piece)[: PIECE - size]]
            return rest, PIECE
        size += len(piece)
    return rest, size


# --- Memory errors: recognized by class name and text, without importing a framework

# Texts count in exceptions of these packages, and of the classes that native code raises. In other
# exceptions a text may quote the payload, as in those that frameworks raise for wrong input.
FRAMEWORKS = """
    bitsandbytes cuda cudf cuml cupy cupy_backends ctranslate2 flash_attn habana_frameworks jax
    jaxlib llama_cpp mxnet numba numba_cuda onnxruntime openvino paddle pycuda rmm sglang tensorflow
    tensorrt tensorrt_llm torch torchaudio torchvision triton vllm xformers xgboost
"""
NATIVE_ERRORS = (RuntimeError, SystemError, MemoryError)
INPUT_CLASSES = (ValueError, TypeError, LookupError)
INPUT_NAMES = ("InvalidArgumentError", "InvalidArgument")  # of TensorFlow and ONNX Runtime
GPU_CLASSES = {"torch.OutOfMemoryError", "cupy.OutOfMemoryError", "pycuda.MemoryError"}


TEXT_LIMIT = 20000  # characters of a chain of exceptions that are searched
BEGINNING = 8  # characters: longer beginnings take more time at start, shorter ones at each error
# Each row has one phrase, or several in this order.
PHRASES = {
    # The GPU context is lost: every later GPU call of this process fails
    "sticky": """
        cuda error: device-side
        cuda error: an illegal
        cuda error: unspecified
        cuda error: misaligned
        cuda error: uncorrectable
        cuda error: unknown error
        an illegal memory access was encountered
        an illegal instruction was encountered
        unspecified launch failure
        device-side assert triggered
        uncorrectable ecc error encountered
        misaligned address
        cudaerrorillegaladdress
        cudaerrorillegalinstruction
        cudaerrorassert
        cudaerrorlaunchfailure
        cudaerrormisalignedaddress
        cudaerroreccuncorrectable
        cuda_error_illegal_address
        cuda_error_illegal_instruction
        cuda_error_assert
        cuda_error_launch_failed
        cuda_error_misaligned_address
        cuda_error_ecc_uncorr
        cublas_status_execution_failed
        cudnn_status_execution_failed
        ncclunhandledcudaerror
        cannot re-initialize cuda in forked subprocess
""",
    # It was raised in another process, whose GPU context is not that of this one
    "relayed": """
        in dataloader worker process
        dataloader worker (pid
        -- process ... terminated with the following error
    """,
    # GPU memory is exhausted. The word "CUDA" or "memory" alone proves nothing
    "cuda_oom_error": """
        cuda out of memory
        hip out of memory
        xpu out of memory
        mps backend out of memory
        cuda error: out of memory
        hip error: out of memory
        cuda driver error: out of memory
        hip driver error: out of memory
        cuda failure 2: out of memory
        cuda failed with error out of memory
        cumem ... failed: out of memory
        cuda_error_out_of_memory
        cudaerrormemoryallocation
        hiperrormemoryallocation
        hiperroroutofmemory
        cublas_status_alloc_failed
        cudnn_status_alloc_failed
        cusolver_status_alloc_failed
        cusparse_status_alloc_failed
        hipblas_status_alloc_failed
        rocblas_status_alloc_failed
        cublas_status_not_initialized ... when calling ... cublascreate
        bad_alloc: rmm
        bad_alloc: cuda
        bad_alloc: out_of_memory:
        pt_devmem allocation failed
        internal assert failed at ... cudacachingallocator
        resource_exhausted: out of memory while trying to allocate
        resource_exhausted: failed to allocate
        oom when allocating tensor ... device:gpu
        oom when allocating tensor ... device:xpu
        oom when allocating tensor ... device:tpu
        device:gpu ... failed to allocate memory
        device:xpu ... failed to allocate memory
        device:tpu ... failed to allocate memory
        gpu= ... failed to allocate memory for requested buffer
        cuda ... failed to allocate memory for requested buffer
        no available memory for the cache blocks
        less than desired gpu memory utilization
        larger than the available kv cache memory
    """,
    # Host memory is exhausted, reported by something other than a MemoryError
    "oom_error": """
        defaultcpuallocator: can't allocate memory
        defaultcpuallocator: not enough memory
        resource_exhausted: out of memory allocating
        oom when allocating tensor ... device:cpu
        device:cpu ... failed to allocate memory
        failed to allocate memory for requested buffer
        onnxruntimeerror ... std::bad_alloc
        available memory of ... is smaller than requested
    """,
}
RELAYING_CLASSES = ("RemoteTraceback", "_RemoteTraceback", "ProcessRaisedException", "RayTaskError")


def make_find_kinds() -> "Callable[[str], set[str]]":
    """Return a function: a text in lower case to the kinds of its phrases, in linear time.

    One pattern finds how the longest phrase of each row begins; only where it does, the row is
    looked for. It is a tree, so that few alternatives are tried at each character.
    """

    def factor(texts: "set[str]") -> str:
        first, last = min(texts), max(texts)
        shared = next((n for n, c in enumerate(first) if c != last[n : n + 1]), len(first))
        rest = {text[shared:] for text in texts}
        if "" in rest:
            return re.escape(first)
        branches = [{r for r in rest if r[0] == c} for c in sorted({r[0] for r in rest})]
        return "%s(?:%s)" % (re.escape(first[:shared]), "|".join(map(factor, branches)))

    table = [
        (kind, row.strip().split(" ... "))
        for kind, rows in PHRASES.items()
        for row in rows.strip().splitlines()
    ]
    pattern = re.compile(factor({max(row, key=len)[:BEGINNING] for _, row in table}))
    rows_by_match: "dict[str, list[tuple[str, list[str]]]]" = {}
    for kind, row in table:  # where a beginning begins with another one, the pattern finds that
        match: "Any" = pattern.match(max(row, key=len))
        rows_by_match.setdefault(match.group(), []).append((kind, row))

    def has_row(text: str, row: "list[str]") -> bool:
        at = 0
        for phrase in row:
            at = text.find(phrase, at) + len(phrase)
            if at < len(phrase):
                return False
        return True

    def find_kinds(text: str) -> "set[str]":
        found = {match.group() for match in pattern.finditer(text)}
        return {kind for one in found for kind, row in rows_by_match[one] if has_row(text, row)}

    return find_kinds


def walk_chain(error: BaseException) -> "Iterator[BaseException]":
    """Yield an exception and what caused it, as the interpreter would print them."""
    todo: "list[Any]" = [error]
    seen: "set[int]" = set()
    while todo and len(seen) < 1000:
        link = todo.pop()
        if not is_a(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        group = get_attribute(link, "exceptions")  # of an ExceptionGroup, or its backport
        todo.extend(group if is_a(group, tuple) else ())
        if not get_attribute(link, "__suppress_context__"):
            todo.append(get_attribute(link, "__context__"))
        todo.append(get_attribute(link, "__cause__"))


def is_of_framework(error: BaseException) -> bool:
    """Whether class or origin of an exception say that its text is that of a framework."""
    kind, trace = type(error), read_traceback(error)
    if kind in NATIVE_ERRORS:
        return True
    if name_type(error) in INPUT_NAMES or (is_a(error, INPUT_CLASSES) and kind is not ValueError):
        return False
    packages = [str(base.__module__).partition(".")[0] for base in kind.__mro__]
    if kind is ValueError and trace is not None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        name = str(trace.tb_frame.f_globals.get("__name__"))
        packages += [package for package in ("vllm",) if name.partition(".")[0] == package]
    return not set(packages).isdisjoint(FRAMEWORKS.split())


def make_classify() -> "Callable[[BaseException], str]":
    """Return a function: an exception to `sticky`, `cuda_oom_error`, `oom_error` or ""."""
    find_kinds = make_find_kinds()

    def classify(error: BaseException) -> str:
        verdict, is_sticky, is_relayed, left = "", False, False, TEXT_LIMIT
        for link in walk_chain(error):
            names = {
                "%s.%s" % (str(base.__module__).partition(".")[0], base.__name__)
                for base in type(link).__mro__
            }
            text = get_text(link)[:left].lower() if is_of_framework(link) else ""
            left -= len(text)
            kinds = find_kinds(text)
            if "relayed" in kinds or name_type(link) in RELAYING_CLASSES:
                is_relayed = True
            if "sticky" in kinds or "vllm.EngineDeadError" in names:
                is_sticky = True
            elif "cuda_oom_error" in kinds or not names.isdisjoint(GPU_CLASSES):
                verdict = "cuda_oom_error"  # before MemoryError, which CuPy's class is too
            elif not verdict and (
                "oom_error" in kinds or is_a(link, MemoryError) or is_enomem(link)
            ):
                verdict = "oom_error"
        return "sticky" if is_sticky and not is_relayed else verdict

    return classify


def is_enomem(error: BaseException) -> bool:
    """Whether the system reports that memory is exhausted."""
    return is_a(error, OSError) and read_errno(error) == errno.ENOMEM


def release_frames(error: BaseException) -> None:
    """Release what the finished frames of the failed call hold: their locals are the tensors."""
    frames = []
    for link in list(walk_chain(error)):
        trace = read_traceback(link)
        BaseException.with_traceback(link, None)  # assigning fails if the class is frozen
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
    living = []
    if CLEAR_ENDS_GENERATORS:
        suspendable = [frame for frame in frames if frame.f_code.co_flags & SUSPENDABLE]
        owners = gc.get_referrers(*suspendable) if suspendable else []
        living = [FRAME_OF[type(one)](one) for one in owners if type(one) in FRAME_OF]
        if gc.get_freeze_count():  # owners that were frozen are not found
            living = suspendable
    for frame in frames:
        if frame not in living:
            try:
                frame.clear()
            except RuntimeError:
                pass  # it is running, or suspended


async def wait_for_nothing() -> None:
    """Give the type of coroutines."""


async def iterate_nothing() -> "AsyncGenerator[None, None]":
    """Give the type of asynchronous generators."""
    yield


VARARGS, GENERATORS, COROUTINE, ASYNC_GENERATOR = 0x04, 0x20, 0x80, 0x200  # as in inspect
SUSPENDABLE = GENERATORS | COROUTINE | ASYNC_GENERATOR
GENERATOR = type(_ for _ in ())
FRAME_OF: "dict[type, Callable[[Any], Any]]" = {
    GENERATOR: lambda owner: owner.gi_frame,
    type(iterate_nothing()): lambda owner: owner.ag_frame,
}
first_coroutine = wait_for_nothing()
FRAME_OF[type(first_coroutine)] = lambda owner: owner.cr_frame
first_coroutine.close()


def empty_caches() -> None:
    """Release cached GPU memory of frameworks that are loaded, without initializing any."""
    torch, cupy = MODULES.get("torch"), MODULES.get("cupy")

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
        except BaseException as error:  # it can run out of memory too
            log("emptying a GPU cache failed: %s" % name_type(error))


MOST_FRAMES = 1000  # of each exception in the log; a raised recursion limit allows millions


def name_error(error: BaseException) -> str:
    """Return the class and the text of an exception."""
    return "%s: %s" % (name_type(error), get_text(error)[:MESSAGE_LIMIT])


def measure_texts(error: BaseException) -> int:
    """Return about how many characters the text of an exception and its notes have."""
    notes = get_attribute(error, "__notes__")
    size = len(get_text(error))
    if is_a(notes, (list, tuple)):
        size += sum(len(note) if type(note) is str else KIND_LIMIT for note in notes)
    return size


def format_trace(trace: "Any") -> "list[str]":
    """Return the lines of a traceback without source."""
    places: "_collections.deque[tuple[Any, int]]" = _collections.deque(maxlen=MOST_FRAMES)
    while trace is not None:
        places.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return ["Traceback (most recent call last):\n", *format_places(places)]


def format_places(places: "Iterable[tuple[Any, int]]") -> "list[str]":
    """Return a line for each frame and its line number."""
    form = '  File "%s", line %d, in %s\n'
    return [form % (one.f_code.co_filename, line, one.f_code.co_name) for one, line in places]


def format_stack(frame: "Any", most: int = MOST_FRAMES) -> "list[str]":
    """Return the lines of a stack, without source where `traceback` fails as above."""
    try:
        return traceback.format_stack(frame, most)
    except BaseException:
        places: "list[tuple[Any, int]]" = []
        while frame is not None and len(places) < most:
            places.append((frame, frame.f_lineno))
            frame = frame.f_back
        return format_places(reversed(places))


def log_traceback(error: BaseException, title: str) -> None:
    """Log an exception as the interpreter would, without the frames of this file."""
    try:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals is globals():
            trace = trace.tb_next
        chain = list(walk_chain(error))
        try:
            if len(chain) < 100 and sum(map(measure_texts, chain)) < TEXT_LIMIT / 4:
                below = trace
                for _ in range(MOST_FRAMES):
                    below = below and below.tb_next
                while below is not None:  # quicker than the limit of traceback, for the chain's
                    below, trace = below.tb_next, trace.tb_next  # type: ignore[union-attr]
                lines = traceback.format_exception(type(error), error, trace, -MOST_FRAMES)
            else:  # it would take seconds
                lines = [*traceback.format_tb(trace, -MOST_FRAMES), name_error(error)]
        except BaseException:  # a file of the user has the name of a module that it imports
            lines = [*format_trace(trace), name_error(error)]
        log(title + "\n" + "".join(lines)[-LOG_LIMIT // 2 :].rstrip())
    except BaseException:
        log(title + "; its traceback cannot be printed")


# --- Memory limit: memory errors in place of the kernel's kill

PROC = "/proc/self"
READING_HOLDS = 0.1  # seconds
LOW_TIME = 10.0  # seconds of too little memory, while other calls run, until the process ends
# The names of a memory cgroup's files (version 2, version 1): limit, usage, and in memory.stat the
# page cache that is given up first
CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
M_ARENA_MAX = -8  # of mallopt()
UNLIMITED = 1 << 62  # version 1 has a number near 2^63 in place of "max"


class MemoryLimit:
    """The soft RLIMIT_DATA of this process while calls run. As it is made here, there is none."""

    __slots__ = ("begin", "end", "is_on", "lift", "resume", "trim")
    begin: "Action"  # a call of this thread; sets `state.exit_code` if memory is lacking
    end: "Action"  # of the call; of the last one that runs: no limit
    lift: "Callable[..., None]"  # no limit while this thread, or that one, looks at an exception
    resume: "Action"  # after that, the limit again if calls run
    trim: "Callable[[], object]"  # give free memory back to the system

    def __init__(self) -> None:
        self.is_on = False
        self.begin = self.end = self.resume = lambda: None
        self.lift = lambda thread=0: None
        self.trim = partial(find_c_function("malloc_trim"), 0)


def make_memory_limit(limit: "int | float", state: State) -> MemoryLimit:
    """Return the limit of `limit` bytes for this process, or of a share of its container's limit.

    The kernel counts address space, so the limit is what the process has mapped plus what is left.
    That sum stays the same while the process maps and frees memory. So a reading can hold for some
    time: only the memory of other processes is missed until the next one, as it is during a call.

    Calls may overlap in several threads, and an exception of user code may arrive anywhere. So
    each function first notes what its thread does; then `apply` repeats the system call until
    it matches the notes, which other threads can change in between.
    """
    result = MemoryLimit()
    is_share = isinstance(limit, float)
    cgroups = find_cgroups() if is_share else []
    data, page = resource.RLIMIT_DATA, resource.getpagesize()
    getrlimit, setrlimit = resource.getrlimit, resource.setrlimit
    now, get_ident = time.monotonic, _thread.get_ident
    calls: "dict[int, None]" = {}  # the threads that run one
    failures: "dict[int, None]" = {}  # the threads that look at an exception
    usual = limited = getrlimit(data)
    until = low_since = 0.0  # when the reading has to be repeated; since when memory is lacking
    trimmed = unused = 0  # bytes that `trim` gave back; mapped ones that are not in use beside them

    def apply() -> None:
        while True:
            wanted = limited if calls and not failures else usual
            try:
                setrlimit(data, wanted)
            except (ValueError, OSError):
                return  # user code has lowered the hard limit: its own limit holds
            if wanted is (limited if calls and not failures else usual):
                return

    def read_mapped() -> "tuple[int, int]":
        """Return the bytes that this process has mapped, and those in use (anonymous memory)."""
        pages = [int(number) for number in read_text("/proc/self/statm").split()]
        return pages[5] * page, (pages[1] - pages[2]) * page

    def refresh() -> "tuple[int, int]":
        """Return the bytes that are left, and that are allowed."""
        nonlocal usual, limited, until, trimmed
        if not calls:
            usual = getrlimit(data)
        mapped, used = read_mapped()
        uses = [(int(limit) - used, int(limit))]
        if is_share:
            found = [use for use in (read_cgroup(*one) for one in cgroups) if use is not None]
            uses = [(int(limit * most) - used, int(limit * most)) for most, used in found]
        left, allowed = min(uses, default=(UNLIMITED, UNLIMITED))
        trimmed = min(trimmed, max(0, mapped - used - unused))
        soft = max(page, mapped + left - trimmed)
        limited = usual  # which is lower, or the container's limit has been removed
        if left < UNLIMITED and (usual[0] == resource.RLIM_INFINITY or soft < usual[0]):
            limited = soft, usual[1]
        until = now() + READING_HOLDS
        return left, allowed

    def trim() -> None:
        """Give free memory back. It stays mapped: it is used again where the limit sees nothing."""
        nonlocal trimmed, unused, until
        refresh()
        mapped, used = read_mapped()
        unused = mapped - used - trimmed
        malloc_trim()
        mapped, used = read_mapped()
        trimmed = max(0, mapped - used - unused)
        refresh()
        until = 0.0  # after a memory error, the next call looks whether enough is left

    def check() -> None:
        """Repeat the reading; end the process if memory is lacking that no other call uses."""
        nonlocal low_since
        left, allowed = refresh()
        if left < LEAST_LEFT and not calls:
            gc.collect()
            trim()
            left, allowed = refresh()
        if left >= LEAST_LEFT:
            low_since = 0.0
            return
        low_since = low_since or now()
        if not calls or now() > low_since + LOW_TIME:
            log(lacking % (name, LEAST_LEFT >> 20, max(0, left) >> 20, allowed >> 20))
            state.exit_code = EXIT_BROKEN

    def begin() -> None:
        if now() >= until and not state.exit_code:
            try:
                check()
            except (OSError, ValueError, MemoryError):
                pass  # the reading before holds on
        calls[get_ident()] = None
        apply()

    def end() -> None:
        thread = get_ident()
        calls.pop(thread, None)
        failures.pop(thread, None)
        if not calls:
            failures.clear()  # also that of the watch, while the call that it looked at ran on
        apply()

    def lift(thread: int = 0) -> None:
        try:
            setrlimit(data, usual)  # first: noting it needs memory
        except (ValueError, OSError):
            pass
        failures[thread or get_ident()] = None
        apply()

    def resume() -> None:
        failures.pop(get_ident(), None)
        apply()

    def lift_in_child() -> None:
        calls.clear()
        apply()

    if not limit:
        return result
    malloc_trim = result.trim
    # Threads, and this one after the first memory error, would get further heaps. There, memory
    # that is given back stays mapped, and a limit of address space does not see it in use
    find_c_function("mallopt")(M_ARENA_MAX, 1)
    name = "ASYA_MEMORY_LIMIT=" + ("%d%%" % round(limit * 100) if is_share else "%d" % limit)
    lacking = (
        "%s: less than %d MiB are left before a call (%d of %d MiB); exiting to be restarted. "
        "Look for a leak, or raise the limit"
    )
    try:
        left = refresh()[0]
    except (OSError, ValueError) as error:
        log("%s: no limit applies, because the memory in use cannot be read: %s" % (name, error))
        return result
    if left >= UNLIMITED:
        log("%s: the container has no memory limit, so none applies; set one, or bytes" % name)
        return result
    lift()  # up to 3.10, its first call needs memory for its frame
    end()
    until = 0.0  # the next call reads what is left after the import
    os.register_at_fork(after_in_child=lift_in_child)
    result.is_on, result.begin, result.end = True, begin, end
    result.lift, result.resume, result.trim = lift, resume, trim
    return result


def find_c_function(name: str) -> "Callable[..., object]":
    """Return a function of the C library that takes integers, or one that does nothing instead.

    By `_ctypes`, because importing ctypes takes three times as long, and more memory.
    """
    try:
        program = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]
        address = _ctypes.dlsym(program, name)
    except Exception:
        return lambda *arguments: 0  # another C library, or none that can be called
    return lambda *arguments: _ctypes.call_function(address, arguments)


def find_cgroups() -> "list[tuple[str, tuple[str, str, str]]]":
    """Return the memory cgroups that this process is in: the directory and the files of each."""
    paths: "dict[str, str]" = {}  # by controller; that of version 2 is ""
    folders: "list[str]" = []
    try:
        for line in read_text(PROC + "/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            paths.update((controller, path) for controller in controllers.split(","))
        for line in read_text(PROC + "/mountinfo").splitlines():
            mount, _, kind = line.partition(" - ")
            root, folder = mount.split()[3:5]
            system, _, options = kind.split()[:3]
            if system == "cgroup2" or (system == "cgroup" and "memory" in options.split(",")):
                path = paths.get("" if system == "cgroup2" else "memory", "")
                root = root.rstrip("/")
                inner = path[len(root) :] if (path + "/").startswith(root + "/") else ""
                names = [name for name in inner.split("/") if name]
                for count in range(len(names), -1, -1):
                    folders.append("/".join([folder, *names[:count]]))
    except (OSError, ValueError):
        pass  # what was found
    both = [(folder, files) for folder in folders for files in CGROUP_FILES]
    return [(folder, files) for folder, files in both if os.path.exists(folder + "/" + files[0])]


def read_cgroup(folder: str, files: "tuple[str, str, str]") -> "tuple[int, int] | None":
    """Return the limit of a cgroup and its memory in use; None for an unlimited one."""
    limit, usage, cache = files
    text = read_text("%s/%s" % (folder, limit)).strip()
    if text == "max" or int(text) >= UNLIMITED:
        return None
    statistics = read_text(folder + "/memory.stat")
    number = ("\n" + statistics).partition("\n%s " % cache)[2].partition("\n")[0]
    return int(text), int(read_text("%s/%s" % (folder, usage))) - int(number or 0)


def read_text(path: str) -> str:
    """Return what a file of the kernel holds."""
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read()


# --- Handler

FUNCTION = type(walk_chain)
METHOD: "Any" = None if IS_PROBE else type(JSONDecoder().decode)
MOST_AWAITS = 100  # of a result that can be awaited, and of what that gives
# Results as they are
PLAIN = frozenset((dict, list, str, int, float, bool, tuple, type(None), *BYTES))


def load_handler(name: str, state: State) -> "Callable[[Any], Any]":
    """Import `module.path.function`, or `module.Class.method` of one new instance."""

    def fail(error: BaseException, reason: str) -> StartupError:
        log_traceback(error, reason)
        return StartupError("%s: %s: %s" % (reason, name_type(error), get_text(error)[:300]))

    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:cut])
        try:
            thing: "Any" = importlib.import_module(path)
            break
        except ModuleNotFoundError as error:
            if state.forked:
                exit_child(error)
            missing = get_attribute(error, "name")
            if type(missing) is not str:  # user code has raised it
                raise fail(error, "importing %s failed" % path) from None
            if not (path + ".").startswith(missing + "."):
                reason = "%s imports %s, which is not installed in this image" % (path, missing)
                raise fail(error, reason) from None
            if cut == 1:
                raise StartupError(explain_missing(name, missing)) from None
        except BaseException as error:  # SystemExit of a script too
            if state.forked:
                exit_child(error)
            thing = MODULES.get(path)  # there if the exception arrived after the import
            if thing is not None:
                break
            raise fail(error, "importing %s failed" % path) from None
    for part in parts[cut:]:
        if is_a(thing, type):
            try:
                thing = thing()
            except BaseException as error:
                raise fail(error, "instantiating %s failed" % path) from None
        try:
            thing, path = getattr(thing, part), path + "." + part
        except AttributeError as error:
            if get_attribute(error, "name") not in (None, part):  # of a property's own code
                raise fail(error, "reading %s.%s failed" % (path, part)) from None
            known = list_contents(thing)
            raise StartupError("%s has no %s; it has %s" % (path, part, known)) from None
        except BaseException as error:  # of a module that loads its parts lazily
            raise fail(error, "reading %s.%s failed" % (path, part)) from None
    if is_a(thing, type):
        reason = "%s is a class; set ASYA_HANDLER to one of its methods: %s"
        raise StartupError(reason % (path, list_contents(thing)))
    if not callable(thing):
        raise StartupError("%s is not callable: it is of type %s" % (path, name_type(thing)))
    parameters = find_unfit_parameters(thing)
    if parameters is not None:
        reason = "%s%s cannot be called with one argument, the message"
        raise StartupError(reason % (path, parameters))
    return thing  # type: ignore[no-any-return, unused-ignore]


def find_unfit_parameters(handler: "Any") -> "str | None":
    """Return the parameters of a handler that cannot be called with one argument, else None."""
    bound, function = 0, handler
    if type(function) is METHOD:
        bound, function = 1, function.__func__
    if type(function) is FUNCTION:  # its own code, not what a decorator says about it
        code = function.__code__
        count, defaults = code.co_argcount - bound, len(function.__defaults__ or ())
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        required = set(names[code.co_argcount :]) - set(function.__kwdefaults__ or ())
        takes_one = count - defaults <= 1 and (count >= 1 or code.co_flags & VARARGS)
        return None if takes_one and not required else "(%s)" % ", ".join(names[bound:])
    if get_attribute(handler, "__wrapped__") is not None:
        return None  # its signature may be that of what it wraps
    try:
        signature = import_library("inspect", lambda inspect: inspect.signature(handler))
    except BaseException:  # functions in C need not have one
        return None
    try:
        signature.bind({})
    except TypeError:
        try:
            return str(signature)
        except Exception:  # of a default value, which cannot be printed
            return "(%s)" % ", ".join(map(str, signature.parameters))
    return None


def list_contents(thing: object) -> str:
    """List what can be called in a module or object, and the modules of a package."""
    try:
        names = [n for n in dir(thing) if n[0] != "_" and callable(get_attribute(thing, n))]
    except BaseException:
        names = []
    try:
        for folder in get_attribute(thing, "__path__") or ():
            files = sorted(os.listdir(folder))
            names += ["the module " + name[:-3] for name in files if name.endswith(".py")]
    except Exception:
        pass  # an archive, or anything
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


def find_flags(handler: object) -> int:
    """Return the flags of the code of a function, a partial or a callable object."""
    while name_type(handler) == "partial":
        handler = get_attribute(handler, "func")
    own_call = get_attribute(get_attribute(type(handler), "__call__"), "__code__")
    flags = get_attribute(get_attribute(handler, "__code__") or own_call, "co_flags")
    return flags if type(flags) is int else 0  # a proxy has any attribute


class Caller:
    """How to call a handler of any form; see `make_caller`."""

    __slots__ = ("call", "cancel", "complete", "has_background_tasks", "run_until_readable")
    call: "Call"
    cancel: "Callable[[int], bool]"  # the coroutine that a thread waits for, if there is one
    complete: "Callable[[object], object]"
    has_background_tasks: "Callable[[], bool] | None"  # None until a loop is used
    run_until_readable: "Callable[[int, float | None], None]"


def make_caller(handler: "Callable[[Any], Any]", threads: bool, state: State) -> Caller:
    """Return how to call the handler: `complete` what `call` returns unless its type is PLAIN.

    Coroutines run on one event loop: the one that is current where the handler was imported, or
    a new one. With threads, the loop has a thread; without, it runs while a coroutine is awaited
    and in `run_until_readable`, until a descriptor is readable or a time is over.
    """
    asyncio: "Any" = None
    loop: "Any" = None
    all_tasks: "Any" = None  # as it was before calls could replace it
    lock: "Any" = _thread.RLock()
    calls: "_collections.deque[Action]" = _collections.deque()  # for the loop's own thread
    waker: "Waker | None" = None  # of that; the loop's own uses sockets, which may be replaced
    tasks: "dict[int, Any]" = {}  # by the thread that waits for it
    interruption: "BaseException | None" = None  # of the main thread's task
    loops_left: "list[Any]" = []  # user code has broken them

    def run_calls() -> None:
        waker.clear()  # type: ignore[union-attr]
        while calls:
            calls.popleft()()

    def open_loop(module: "Any") -> None:
        nonlocal asyncio, loop, all_tasks, waker
        if asyncio is None and not threads:
            guard_event_loop(interrupt)
        asyncio, loop, all_tasks = module, None, all_tasks or module.all_tasks
        warnings = importlib.import_module("warnings")
        with warnings.catch_warnings(module=warnings):
            warnings.simplefilter("ignore")  # of asking for a loop where none is current
            try:
                if sys.version_info < (3, 14):  # where the next line also makes one, and warns
                    module = asyncio.get_event_loop_policy()
                loop = module.get_event_loop()
            except Exception:
                pass  # RuntimeError: none is current
        if loop is None or loop in loops_left or loop.is_closed():
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        if threads and not loop.is_running():
            waker = Waker()
            os.register_at_fork(after_in_child=waker.close)
            loop.add_reader(waker.reader, run_calls)
            start_thread(run_loop)

    def run_loop() -> None:
        try:
            run_until(lambda: False, loop.run_forever)
        finally:
            leave_loop()

    def leave_loop() -> None:
        """Open another loop for the next call: user code has broken this one."""
        nonlocal loop
        loop, left = None, loop
        loops_left.append(left)
        try:
            left.close()
        except BaseException as error:
            log_traceback(error, "the event loop cannot be closed")

    def has_background_tasks() -> bool:
        return loop is not None and not loop.is_closed() and bool(all_tasks(loop))

    def interrupt(error: BaseException) -> None:
        """Cancel what the main thread awaits: a signal handler has raised an exception."""
        nonlocal interruption
        log_traceback(error, "a signal handler failed while the event loop ran")
        task = tasks.get(_thread.get_ident())
        if task is not None:
            interruption = error
            loop.call_soon_threadsafe(task.cancel)

    def run_until(done: "Callable[[], bool]", run: "Callable[[], Any]") -> None:
        attempts = 0
        while not done() and not loop.is_closed() and attempts < 1000:
            attempts += 1
            try:
                run()
            except BaseException as error:  # SystemExit in a background task of user code
                log_traceback(error, "a background task stopped the event loop; it is restarted")

    async def capture(make: "Callable[[], Any]", outcome: "list[Any]", thread: int) -> None:
        """Append result and exception: a SystemExit that is raised would end the loop.

        The loop may run in another thread than the call, `thread`, which only then looks at it.
        The frames that run the task, and so the task, stay as long as the exception; if it were
        the result of the task, they would hold each other.
        """
        result, failure = None, None
        try:
            result = make()
            for _ in range(MOST_AWAITS):  # some clients give themselves
                if not has_method(result, "__await__"):
                    break
                result = await result
            if has_method(result, "__anext__"):
                result = [item async for item in result]
        except BaseException as error:
            state.memory_limit.lift(thread)
            failure = error
        if state.forked:
            exit_child(failure)
        outcome.append((result, failure))
        del result, failure

    def run_in_thread(make: "Callable[[], object]") -> "Any":
        """Run it on the loop of another thread; wait with a lock that user code cannot replace.

        User code may cancel the task before it begins, and exceptions from outside may interrupt
        `begin` and `deliver`. So the wait looks at them from time to time.
        """
        outcome: "list[Any]" = []
        task: "Any" = None
        done = _thread.allocate_lock()
        done.acquire()

        async def deliver() -> None:
            await capture(make, outcome, thread)
            done.release()

        def begin() -> None:
            nonlocal task
            if task is not None:
                return
            try:
                task = loop.create_task(deliver())  # the loop itself holds tasks only weakly
                if not task.done():
                    tasks[thread] = task
            except BaseException as error:  # no memory; or of a task factory of user code
                outcome.append((None, error))
                done.release()

        thread, own_loop = _thread.get_ident(), loop
        call_soon(begin)
        while not done.acquire(True, PAUSE):
            if loop is not own_loop or loop.is_closed():
                outcome.append((None, RuntimeError("the event loop was closed")))
            elif task is None:
                call_soon(begin)
            elif task.done():
                failure = None if task.cancelled() else task.exception()
                outcome.append((None, failure or asyncio.CancelledError()))
            if outcome:
                break
        tasks.pop(thread, None)
        return outcome.pop(0)

    def call_soon(action: "Action") -> None:
        """Call a function on the loop, from another thread."""
        if waker is None:  # the loop of a thread of user code, or of the main thread
            loop.call_soon_threadsafe(action)
        else:
            calls.append(action)
            waker.wake()

    def cancel(thread: int) -> bool:
        task = tasks.get(thread)
        if task is None:
            return False
        for one in all_tasks(loop):
            stack = "".join(format_task(one))  # none of one that runs
            if stack:
                log("a task is here:\n%s" % stack[-5000:].rstrip())
        call_soon(task.cancel)
        return True

    def run(make: "Callable[[], object]") -> object:
        nonlocal interruption
        try:  # not `with`: an exception from outside may arrive when it has the lock, and keep it
            lock.acquire()
            if loop is None or loop.is_closed():
                import_library("asyncio", open_loop)
        finally:
            if lock._is_owned():
                lock.release()
        task, outcome = None, []  # type: Any, list[Any]
        if threads or loop.is_running():
            result, error = run_in_thread(make)
        else:
            caller.has_background_tasks, interruption = has_background_tasks, None
            try:
                thread = _thread.get_ident()
                store(tasks, thread, map(loop.create_task, (capture(make, outcome, thread),)))
                task = tasks[thread]
                run_until(task.done, lambda: loop.run_until_complete(task))
                if not task.done():
                    leave_loop()
                if not outcome:
                    task.result()  # raises
                result, error = outcome.pop()
            finally:
                if loop is not None and not loop.is_closed():
                    for task in tasks.values():
                        task.cancel()  # it was left where it waits
                tasks.clear()
            if interruption is not None and is_a(error, asyncio.CancelledError):
                error, interruption = interruption, None
        try:
            if error is not None:
                raise error
            return result
        finally:
            task = None
            del error, result  # as above

    def complete(result: "Any") -> object:
        """Make a list of a generator's items; await what can be awaited."""
        if type(result) is GENERATOR:
            return list(result)
        if has_method(result, "__await__") or has_method(result, "__anext__"):
            return run(lambda: result)
        return result

    def run_until_readable(fd: int, timeout: "float | None") -> None:
        event = loop.create_future()

        def finish() -> None:
            if not event.done():
                event.set_result(None)

        loop.add_reader(fd, finish)
        timer = None if timeout is None else loop.call_later(timeout, finish)
        try:
            run_until(event.done, lambda: loop.run_until_complete(event))
        finally:
            loop.remove_reader(fd)
            if timer is not None:
                timer.cancel()

    caller = Caller()
    caller.call, caller.complete, caller.cancel = handler, complete, cancel
    caller.has_background_tasks = None
    caller.run_until_readable = run_until_readable
    if find_flags(handler) & (COROUTINE | ASYNC_GENERATOR):
        import_library("asyncio", open_loop)
        caller.call = lambda request: run(lambda: handler(request))
    return caller


def guard_event_loop(interrupt: "Callable[[BaseException], None]") -> None:
    """Pass exceptions of signal handlers to a function instead of raising them in asyncio's code.

    Raised there, they take away a callback that the loop was about to run or to schedule, and
    what waits for it never goes on. A handler that interrupts user code raises as usual.
    """
    handlers: "dict[object, Any]" = {}  # of user code, by their guards

    def guard(handler: "Any") -> "Any":
        def run_guarded(number: int, frame: "Any") -> object:
            try:
                return handler(number, frame)
            except BaseException as error:
                interrupted = skip_guards(frame, run_guarded.__code__)
                if not is_in_event_loop(interrupted):
                    raise
                if interrupted is frame:  # else the handler has failed while this is done
                    interrupt(error)
                return None

        handlers[run_guarded] = handler
        return run_guarded

    def set_handler(number: int, handler: "Any") -> "Any":
        before = _signal.signal(number, guard(handler) if callable(handler) else handler)
        return handlers.pop(before, before)

    def get_handler(number: int) -> "Any":
        handler = _signal.getsignal(number)
        return handlers.get(handler, handler)

    for number in _signal.valid_signals():
        if callable(_signal.getsignal(number)) and number not in (TERM, INT):
            set_handler(number, _signal.getsignal(number))
    SIGNAL_MODULE.signal, SIGNAL_MODULE.getsignal = set_handler, get_handler  # type: ignore[attr-defined]


def skip_guards(frame: "Any", guard: object) -> "Any":
    """Return the frame that the first of nested signal handlers interrupted, or `frame`."""
    one = frame
    while one is not None and (one.f_globals is globals() or is_of_library(one)):
        if one.f_code is guard:
            frame = one.f_back
        one = one.f_back
    return frame


def is_in_event_loop(frame: "Any") -> bool:
    """Whether a frame belongs to asyncio, or to what it calls, with no user code in between."""
    seen = False
    while frame is not None and frame.f_globals is not globals():
        if not is_of_library(frame):
            return False
        seen = seen or frame.f_code.co_filename.startswith(LIBRARY[0] + "/asyncio/")
        frame = frame.f_back
    return seen and frame is not None


def is_of_library(frame: "Any") -> bool:
    """Whether a frame belongs to the standard library."""
    file = frame.f_code.co_filename
    return file.startswith((LIBRARY[0] + "/", "<frozen ")) and "-packages/" not in file


def format_task(task: "Any") -> "list[str]":
    """Return the lines of a task's stack, down to where it waits."""
    lines: "list[str]" = []
    coroutine = task.get_coro()
    while coroutine is not None and len(lines) < 100:
        frame = get_attribute(coroutine, "cr_frame") or get_attribute(coroutine, "gi_frame")
        if frame is not None and frame.f_globals is not globals():
            lines += format_stack(frame, 1)
        following = get_attribute(coroutine, "cr_await")
        coroutine = following or get_attribute(coroutine, "gi_yieldfrom")
    return lines


def has_method(thing: object, name: str) -> bool:
    """Whether the class of an object has a method; asks twice, as an exception may interrupt it."""
    return (get_attribute(type(thing), name) or get_attribute(type(thing), name)) is not None


def exit_child(error: "BaseException | None") -> None:
    """End a child process that user code forked, as a script would end."""
    code = 0 if error is None else 1
    if is_a(error, SystemExit):
        status = get_attribute(error, "code")
        code = int.__int__(status) if is_a(status, int) else int(status is not None)
    elif error is not None:
        log_traceback(error, "a forked child failed")
    flush_streams()
    os._exit(code & 0xFF)


def flush_streams() -> None:
    """Write what user code has printed without a newline."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except BaseException:
            pass  # closed, or replaced by anything


def persist(work: "Action") -> "Action":
    """Return a function for a thread: do the work, again after each exception from outside."""

    def work_on() -> None:
        while True:
            try:
                work()
            except BaseException:
                pass

    return work_on


def start_thread(work: "Callable[[], object]") -> None:
    """Start a thread for which the process never waits. Raises RuntimeError if it cannot."""
    size = _thread.stack_size(16777216)  # for deep JSON; only what is used costs memory
    try:
        _thread.start_new_thread(work, ())
    finally:
        _thread.stack_size(size)


# --- Answer


def make_answer(
    settings: Settings,
    codec: "Codec",
    caller: Caller,
    watch_call: "Callable[[Caller], Call]",
    classify: "Callable[[BaseException], str]",
    state: State,
) -> "tuple[Answer, AnswerAll]":
    """Return `answer(message)` and `answer_all(batch)`.

    They return the replies and never raise.
    """
    decode, encode, encode_large, encode_attached = codec
    detection, metadata = settings.enable_oom_detection, settings.include_metadata
    call, complete = watch_call(caller), caller.complete
    no_memory = OUT_OF_MEMORY if detection else UNPRINTABLE
    memory_limit = state.memory_limit
    lift_limit, resume_limit = memory_limit.lift, memory_limit.resume

    def read(message: Message) -> "Request":
        """Decode a message and check its form; again after an exception from outside."""
        request: "Any" = None
        retries = 0
        while request is None:
            try:
                request = decode(message)
                break
            except OWN_ERRORS:
                raise
            except BaseException:
                retries += 1
                if retries > MAX_RETRIES:
                    raise ValueError("the message cannot be decoded") from None
        if not isinstance(request, dict):
            raise ValueError("the message is not a JSON object")
        if not isinstance(request.get("payload"), dict):
            raise ValueError('the message has no "payload" that is an object')
        return request if metadata else {"payload": request["payload"]}

    def write(message: Message, build: "Encode") -> "Reply":
        """Encode the result of a message."""
        reply: "Any" = None
        retries = 0
        while reply is None:
            try:
                reply = build(message)
            except OWN_ERRORS:
                raise
            except BaseException:
                retries += 1
                if retries > MAX_RETRIES:
                    raise
        return reply  # type: ignore[no-any-return]

    def check_size(reply: "Reply") -> None:
        if len(reply) > FRAME_LIMIT:
            raise OverflowError("reply of %d bytes exceeds the frame limit" % len(reply))

    def fail(
        error: BaseException, step: str, message: Message, retried: int = 0
    ) -> "tuple[bytes, str]":
        """Build the error reply; after a memory error release what the failed call holds."""
        reply, kind = UNPRINTABLE, ""
        try:
            is_own = is_a(error, OWN_ERRORS) and not is_a(error, MemoryError)
            if step == "decode" and is_own:
                prefix = "in the JSON before the zero byte: " if message.reads_attachments else ""
                return describe("invalid_json", error, prefix), ""
            prefix = explain_unencodable(message, error, is_own) if step == "encode" else ""
            kind = classify(error)
            code = kind if kind in CODES else "processing_error"
            reply = describe(code, error, "" if kind else prefix)
            if kind in CODES:
                log("%s: %s" % (code, name_type(error)))
            elif retried and kind != "sticky":
                text = "a call with %d messages failed: %s; trying smaller calls"
                log(text % (retried, name_type(error)))
            else:
                log_traceback(error, prefix or "the handler failed")
        except MemoryError:
            reply, kind = no_memory, kind or "oom_error"
        except BaseException as other:
            log("the handler's exception cannot be printed: %s" % name_type(other))
            reply = interrupted(error)  # the other one may have arrived from outside
        if kind in CODES:
            release_frames(error)
        return reply, kind

    def explain_unencodable(message: Message, error: BaseException, is_own: bool) -> str:
        if is_a(error, MemoryError):
            return ""
        try:
            where = find_unencodable(message.result, message.reads_attachments)
        except MemoryError:
            return ""
        except BaseException:  # of a conversion, as `error` is
            where = ": "
        if not (where or is_own):
            return ""  # the result is good: the exception came from outside
        hint = "; await it in the handler" if where.endswith(": coroutine") else ""
        return "result is not JSON-serializable at result%s%s; " % (where, hint)

    def recover(kind: str) -> None:
        """Make the next call possible, or end the process if none can succeed."""
        state.note_memory_error(kind)
        if kind == "sticky":
            log("the GPU context of this process is lost; exiting after this reply")
            state.exit_code = EXIT_POISONED
            return
        gc.collect()
        if settings.cuda_cleanup_on_oom:
            empty_caches()
        memory_limit.trim()

    def end(message: Message, kind: str) -> None:
        """Release what a message held; after a memory error, where its exception is gone."""
        message.body = message.result = None
        if kind:
            try:
                recover(kind)
            except BaseException as error:
                log_traceback(error, "releasing memory failed")

    def answer(message: Message) -> "Reply":
        if state.exit_code:
            return RESTARTING
        kind, step = "", "decode"
        request: "Any" = None
        try:
            build = encode if len(message.body) < LARGE else encode_large  # type: ignore[arg-type]
            request = read(message)
            if message.reads_attachments:
                build = encode_attached
            step = "call"
            result = call(request)
            request = None  # its memory may be needed for the reply
            if type(result) not in PLAIN:
                result = complete(result)
            if state.forked:
                exit_child(None)
            message.result, result = result, None
            step = "encode"
            reply = write(message, build)
            step = "send"
            check_size(reply)
        except BaseException as error:  # SystemExit and KeyboardInterrupt are answered too
            lift_limit()
            if state.forked:
                exit_child(error)
            reply, kind = fail(error, step, message)
            request = result = None
        if kind:
            end(message, kind)
        else:
            message.body = message.result = None
        return reply

    def answer_all(batch: "Batch") -> "list[Reply]":
        if settings.batch_size == 1:
            return [answer_one(message) for message in batch.messages]
        replies: "dict[Message, Reply]" = {}
        groups, fitted, failed = [batch.messages], 0, False
        while groups and not batch.is_late:  # else none of these replies counts
            group = groups.pop(0)
            if len(group) < len(batch.messages):
                state.renew_deadline(batch)
            kind = answer_together(group, replies, batch)
            rest = [message for message in group if message not in replies]
            if rest:  # to be tried again, in smaller calls
                half = (len(rest) + 1) // 2
                groups[:0] = [rest[:half], rest[half:]] if half < len(rest) else [rest]
                failed = failed or kind in CODES
            elif not kind:
                fitted = max(fitted, len(group))
        if failed and fitted:
            state.batch_limit, state.limited_at = fitted, time.monotonic()
        return [replies.get(message, UNPRINTABLE) for message in batch.messages]

    def answer_group(
        group: "list[Message]", replies: "dict[Message, Reply]", batch: "Batch"
    ) -> str:
        """Answer messages by one call; none of them, if smaller calls are to be tried.

        Return the kind of a memory error of the call, or "".
        """
        calls: "list[Message]" = []
        requests: "Any" = []
        results: "Any" = None
        for message in group:
            body = message.body  # needed again if the call fails
            try:
                if state.exit_code:
                    replies[message] = RESTARTING
                    continue
                requests.append(read(message))
                calls.append(message)
                message.body = body if len(group) > 1 else None
            except BaseException as error:
                lift_limit()
                replies[message], kind = fail(error, "decode", message)
                end(message, kind)
                resume_limit()
        body = None
        if not calls:
            return ""
        kind = ""
        try:
            results = list_results(complete(call(requests)), len(calls))
            requests = None
            if state.forked:
                exit_child(None)
        except BaseException as error:
            lift_limit()
            if state.forked:
                exit_child(error)
            is_final = is_a(error, UnfitResults) or has_verdict(error)
            is_final = is_final or len(calls) == 1 or batch.is_late
            reply, kind = fail(error, "call", calls[0], 0 if is_final else len(calls))
            if is_final or kind == "sticky":
                replies.update((message, reply) for message in calls)
            requests = results = None
        if results is None:
            for message in calls:
                if message in replies:
                    end(message, "")
            end(Message(), kind)
            return kind
        for at, message in enumerate(calls):
            message.result, results[at] = results[at], None
            kind = ""
            try:
                step = "call"
                if is_a(message.result, BaseException):
                    error_of_one, message.result = message.result, None
                    raise error_of_one
                step = "encode"
                build = encode_attached if message.reads_attachments else encode
                replies[message] = write(message, build)
                step = "send"
                check_size(replies[message])
            except BaseException as error:
                lift_limit()
                replies[message], kind = fail(error, step, message)
                error_of_one, step = None, "failed"
            end(message, kind)
            if step == "failed":
                resume_limit()
        return ""

    def answer_with_limit(message: Message) -> "Reply":
        try:
            memory_limit.begin()
            return answer(message)
        except MemoryError:  # before the limit was lifted
            return no_memory
        finally:
            memory_limit.end()

    def answer_group_with_limit(
        group: "list[Message]", replies: "dict[Message, Reply]", batch: "Batch"
    ) -> str:
        try:
            memory_limit.begin()
            return answer_group(group, replies, batch)
        finally:
            memory_limit.end()

    is_limited = memory_limit.is_on
    answer_one = answer_with_limit if is_limited else answer
    answer_together = answer_group_with_limit if is_limited else answer_group
    return answer_one, answer_all


class UnfitResults(Exception):  # noqa: N818
    """What a handler returned for several messages is not one result for each."""


def list_results(results: "Any", count: int) -> "list[Any]":
    """Return the results of a batch as a new list. Raises UnfitResults."""
    if type(results) not in PLAIN:
        to_list = get_attribute(results, "tolist")  # of arrays, without importing their package
        if callable(to_list) and holds_dates(get_attribute(results, "dtype")):
            text = "the handler returned %s with dates or durations; return a list with their texts"
            raise UnfitResults(text % name_class(type(results)))
        results = to_list() if callable(to_list) else results
    if not is_a(results, (list, tuple)):
        text = "the handler returned %s for %d messages; return a list with one result for each"
        raise UnfitResults(text % (name_class(type(results)), count))
    items = list(results)  # a class of user code may have a length of its own
    if len(items) != count:
        text = "the handler returned %d results for %d messages; return one for each, in order"
        raise UnfitResults(text % (len(items), count))
    return items


def has_verdict(error: BaseException) -> bool:
    """Whether an exception says itself how severe it is."""
    severity = get_attribute(error, "severity")
    return isinstance(severity, str) and severity in ("recoverable", "fatal")


# --- Socket file: it exists if and only if the handler serves

LOCK_TIME = 10.0  # seconds to wait for the directory's lock, which is held for milliseconds


class SocketFile:
    """The listening socket and its file."""

    __slots__ = ("close", "is_open", "listener", "publish", "remove")
    is_open: "Callable[[], bool]"  # user code may close any descriptor
    listener: "Socket"
    publish: "Action"  # give the file its name
    remove: "Action"
    close: "Action"


def open_listener(path: str, mode: int) -> SocketFile:
    """Listen under a temporary name."""
    folder, name = os.path.split(path)
    temporary = ".asya-" + os.urandom(4).hex()
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        os.makedirs(folder, exist_ok=True)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StartupError("socket directory %s: %s" % (folder, error.strerror)) from None

    def make_address(entry: str) -> str:
        plain = "%s/%s" % (folder, entry)
        if len(os.fsencode(plain)) <= 107:
            return plain
        return "/proc/self/fd/%d/%s" % (directory, entry)  # short, however long the path is

    def get_status(entry: str) -> os.stat_result:
        return os.stat(entry, dir_fd=directory, follow_symlinks=False)

    def clear(entry: str) -> None:
        """Remove a socket without a listener. Raises StartupError for anything else there."""
        plain = "%s/%s" % (folder, entry)
        try:
            if not stat.S_ISSOCK(get_status(entry).st_mode):
                reason = "%s exists and is not a socket; refusing to replace it"
                raise StartupError(reason % plain)
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
            lock()
            try:
                action()
            finally:
                fcntl.flock(directory, fcntl.LOCK_UN)
        except StartupError:
            raise
        except Exception as error:  # also of an audit hook of user code
            text = get_attribute(error, "strerror") or name_error(error)
            raise StartupError("socket %s: %s" % (path, text)) from None

    def lock() -> None:
        latest = time.monotonic() + LOCK_TIME
        while True:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > latest:
                    reason = "another process has held the lock (flock) of %s for %g s; end it"
                    raise StartupError(reason % (folder, LOCK_TIME)) from None
            time.sleep(0.02)

    def bind() -> None:
        """Bind with the right mode: chmod afterwards would follow a link put in its place."""
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(make_address(temporary))
        finally:
            os.umask(before)
        found = get_status(temporary).st_mode
        if not stat.S_ISSOCK(found):
            raise StartupError("%s/%s was replaced by another process" % (folder, temporary))
        if stat.S_IMODE(found) != mode:
            reason = "%s gets the mode %04o, not %04o: the directory has a default ACL"
            log(reason % (path, stat.S_IMODE(found), mode))

    def claim() -> None:
        clear(name)
        for entry in os.listdir(directory):
            if entry.startswith(".asya-"):
                try:
                    clear(entry)  # left by a start that was killed
                except (OSError, StartupError):
                    pass  # another start is in progress
        bind()
        listener.listen(1024)
        listener.setblocking(False)

    def publish() -> None:
        clear(name)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)

    def remove() -> None:
        for entry in (temporary, name):
            try:
                found = get_status(entry)
                if (found.st_ino, found.st_dev) == (claimed.st_ino, claimed.st_dev):
                    os.unlink(entry, dir_fd=directory)
            except Exception:
                pass  # already removed, or an audit hook of user code forbids it

    def close() -> None:
        """Close it in this process. Left to the interpreter's end, 3.9 crashes there."""
        close_quietly(listener.close)
        close_quietly(lambda: os.close(directory))

    try:
        run_locked(claim)
    except StartupError:
        close()
        raise
    claimed = get_status(temporary)
    os.register_at_fork(after_in_child=close)
    file = SocketFile()
    file.listener, file.publish = listener, lambda: run_locked(publish)
    file.remove, file.close = remove, close
    file.is_open = make_is_open(listener.fileno(), directory)
    return file


def make_is_open(*fds: int) -> "Callable[[], bool]":
    """Return a function that tells whether these descriptors are still what they are now."""

    def identify(fd: int) -> "tuple[int, int]":
        found = os.fstat(fd)
        return found.st_dev, found.st_ino

    known = [identify(fd) for fd in fds]

    def is_open() -> bool:
        try:
            return known == [identify(fd) for fd in fds]
        except OSError as error:
            return not is_of_system(error)

    return is_open


def close_quietly(close: "Action") -> None:
    """Close what user code may have closed."""
    try:
        close()
    except OSError as error:
        if not is_of_system(error):
            raise


def try_to_connect(address: str) -> None:
    """Raise OSError unless a process listens there."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(address)
    except BlockingIOError:
        pass  # the backlog is full: a process listens
    finally:
        sock.close()


# --- Signals, and warnings about slow calls: one thread

LONGEST_WAIT = 86400.0  # seconds; more than a timeout of the system may be is an error there
if not IS_PROBE:
    TERM, INT = int(_signal.SIGTERM), int(_signal.SIGINT)


class Watch:
    """What `start_watch` offers."""

    __slots__ = ("enforce_deadline", "install", "is_running", "on_signal", "wake", "watch_call")
    is_running: bool
    wake: "Action"  # let it look at the deadlines
    enforce_deadline: "Callable[[], float] | None"  # the seconds until it is to be called again
    install: "Action"  # the signal handlers, again after user code has replaced them
    on_signal: "Callable[[int, object], None]"  # is such a handler
    watch_call: "Callable[[Caller], Call]"  # warn while a call runs over the limit


def start_watch(limit: float, state: State, abandon: "Action") -> Watch:
    """Start the thread that receives SIGTERM even while the main thread is deep in C code.

    Until the server serves, SIGTERM runs `abandon()` and exits 0; then it sets `state.stopping`.
    `limit`: seconds after which a call is slow; 0: never.
    """
    reader = writer = -1
    is_open: "Callable[[], bool]" = bool  # False
    running: "dict[object, float]" = {}  # when each call began
    received = {"thread": 0, "main": 0}  # each signal arrives on both ways
    masks: "dict[int, set[int]]" = {}  # of the threads that fork now
    signals = (TERM, INT)
    main_thread = _thread.get_ident()
    result = Watch()
    result.enforce_deadline, result.is_running = None, True

    def on_signal(way: str, number: int) -> None:
        received[way] += 1
        if received[way] > 1:
            os._exit(128 + number)
        if state.wake is None:
            abandon()
            os._exit(0)
        state.stopping = True
        state.wake()

    def on_signal_in_python(number: int, frame: object) -> None:
        on_signal("main", number)

    def install() -> None:
        nonlocal reader, writer, is_open
        if _thread.get_ident() != main_thread:
            return  # that one hangs
        if not is_open():
            reader, writer = os.pipe()
            is_open = make_is_open(reader, writer)
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in signals:  # on both ways: user code may take the wake-up fd
            _signal.signal(number, on_signal_in_python)

    def before_fork() -> None:  # the child has a copy of our pipe: its signals would be ours
        masks[_thread.get_ident()] = _signal.pthread_sigmask(_signal.SIG_BLOCK, signals)

    def after_fork() -> None:
        mask = masks.pop(_thread.get_ident(), None)
        if mask is not None:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)

    def after_fork_in_child() -> None:
        try:
            _signal.set_wakeup_fd(-1)
            for number in signals:
                if _signal.getsignal(number) is on_signal_in_python:
                    _signal.signal(number, _signal.SIG_DFL)
        except ValueError:
            pass  # forked from a thread; the handlers do nothing in a child
        close_quietly(lambda: os.close(reader))
        close_quietly(lambda: os.close(writer))
        after_fork()

    def watch() -> None:
        warned: "set[object]" = set()
        while True:
            now, calls = time.monotonic(), dict(running)
            warned &= set(calls)
            for key, began in calls.items():
                if now - began >= limit and key not in warned:
                    warned.add(key)
                    log("the handler is still running after %.3g s" % (now - began))
            due = [calls[key] + limit - now for key in calls if key not in warned]
            pause = min(LONGEST_WAIT, *due, limit) if limit else LONGEST_WAIT
            if result.enforce_deadline is not None:
                pause = min(pause, result.enforce_deadline())
            poll = select.poll()
            poll.register(reader, select.POLLIN)
            for _, event in poll.poll(1000 * pause + 1):
                if event != select.POLLIN:
                    time.sleep(0.1)  # user code has closed it: `install` opens another
                    break
                for number in os.read(reader, 512):
                    if number in signals:
                        on_signal("thread", number)
                    elif number and state.wake is not None:
                        state.wake()  # the signal may have come just before the server's wait

    def watch_forever() -> None:
        while True:
            try:
                watch()
            except BaseException as error:
                # RuntimeError: faulthandler gets no thread
                is_limited = type(error) in (MemoryError, RuntimeError)
                is_limited = is_limited and state.memory_limit.is_on
                if is_limited:  # a call has all memory: look at it without the limit
                    state.memory_limit.lift()
                else:
                    log_traceback(error, "the watch over signals and slow calls failed")
                time.sleep(PAUSE / 100 if is_limited else PAUSE)

    def wake() -> None:
        os.write(writer, b"\0")

    def watch_call(caller: Caller) -> "Call":
        def watched_call(request: "Request") -> object:
            key = object()
            running[key] = time.monotonic()
            try:
                result = caller.call(request)
                return result if type(result) in PLAIN else caller.complete(result)
            finally:
                del running[key]

        return watched_call if limit else caller.call

    install()
    os.register_at_fork(
        before=before_fork, after_in_parent=after_fork, after_in_child=after_fork_in_child
    )
    try:
        start_thread(persist(persist(watch_forever)))
    except RuntimeError as error:
        log("cannot watch signals and slow calls while C code runs: %s" % error)
        result.is_running = False
    result.install, result.watch_call = install, watch_call
    result.on_signal, result.wake = on_signal_in_python, wake
    return result


# --- Connections

# What a connection waits for; see Connection
IDLE, READ, WRITE, NOW, REPLY, CALL, CLOSED = range(7)
GRACE = 0.25  # seconds in which a new connection may send its first message
FIRST_BUFFER = 65536  # size of the first buffer for what is larger than ASYA_CHUNK_SIZE
POOLED_BUFFER = 4194304  # buffers up to this size are used again
PIECE = 1048576  # a buffer doubles, by at most this: the allocator would keep larger ones
ZEROS = bytes(PIECE)  # which takes no memory
LARGE = 16777216  # replies to messages of this size are built with little memory
# Flags of system calls; without DONT_WAIT, one waits for the peer as long as LONGEST_PAUSE
DONT_WAIT, WAIT_ALL = _socket.MSG_DONTWAIT, _socket.MSG_WAITALL
NO_SIGNAL = _socket.MSG_NOSIGNAL
if not IS_PROBE:
    LONGEST_PAUSE = _struct.pack("ll", 0, 2000)  # 2 ms: the kernel rounds it up to its ticks
PEER_IS_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ENOTSOCK, errno.ENOTCONN)
ARRIVED = "an exception arrived between calls; the server goes on"
MAX_INTERRUPTIONS = 1000  # of one message, or one step, by exceptions from outside


class Connection:
    """One connection: its socket, its generator and what that waits for."""

    __slots__ = (
        "conversation",
        "count",
        "fd",
        "frame",
        "is_muted",
        "message",
        "messages",
        "new_until",
        "received",
        "resume",
        "settled",
        "sock",
        "turn",
        "waits_for",
    )
    resume: "Callable[[None], None]"  # run the generator until it waits again

    def __init__(self, sock: "Socket") -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.conversation: "Any" = None  # the generator
        self.message = Message(self)  # in work where it is read, or by CALL
        self.messages: "list[Message]" = []  # in the queue, or answered and not yet sent
        self.received: "bytes | None" = None  # and not yet looked at
        self.frame: "Bytes" = b""  # to be sent now
        self.count = 0  # bytes that the last system call has moved, not yet added up
        # IDLE: the next message. READ: the rest of one. WRITE: the peer to read its reply.
        # NOW: the turn of the others. REPLY: one of `messages`. CALL: the reply to `message`
        self.waits_for = IDLE
        self.settled = CLOSED  # what the server has prepared for
        self.is_muted = True  # it is not polled: it is new, or waits for something else
        self.turn = 0  # when it was heard of last, in rounds of the server
        self.new_until = time.monotonic() + GRACE  # until then, or its first reply, it stays


class BrokenStream(Exception):  # noqa: N818
    """The stream ended or stalled inside a frame, as its text says; or it ended, without text."""


def keep_result(connection: Connection, name: str, results: "Iterator[Any]") -> "Action":
    """Return a function that stores the next of `results` as an attribute, as `store` does."""
    return map(setattr, repeat(connection), repeat(name), results).__next__


def serve_connection(
    connection: Connection,
    settings: Settings,
    buffer_pool: "list[ReceiveBuffer]",
    answer: "Answer | None",
    queue: "Queue | None",
    note_reply: "Callable[[Reply], object]",
) -> "Conversation":
    """Serve one connection from accept to close; yield when `connection.waits_for` something.

    With a queue, messages go there and are replied to in their order when they have their
    replies. Without one, `answer` is called here; without that, the server is asked for the reply
    to `connection.message`, so that nothing of it runs here. The pool holds one receive buffer for
    all connections: a new one would have to be zeroed and paged in. It goes there when the message
    is answered, and from there when nothing is left that looks at it.

    User code can raise an exception here at any call. So state changes in single steps after a
    call, and `keep_result` keeps what system calls return. After an exception the loop goes on
    from this state: each turn of the inner loop looks at the variables below and does what is
    next. These steps are marked: queue, prefix, body, answer, send. The outer `try` is for an
    exception that arrives while the inner one handles another, as where the processor is shared.

    Exceptions from outside arrive at jumps back. Compilers from 3.12 to 3.14 leave such a jump out
    of its `try` if it has a condition, and 3.11 and 3.12 look for the handler at what stands before
    its target. So loops here are `while True`, do not end with an `if`, and do not begin a `try`.
    """
    sock, message = connection.sock, connection.message
    no_memory = OUT_OF_MEMORY if settings.enable_oom_detection else UNPRINTABLE
    limit = settings.max_message_size
    prefix = _struct.Struct(">I")
    pack, unpack = prefix.pack, prefix.unpack_from
    chunk = settings.chunk_size if queue is None else queue.chunk
    receive = keep_result(connection, "received", map(sock.recv, repeat(chunk), repeat(DONT_WAIT)))
    frames = map(getattr, repeat(connection), repeat("frame"))
    move = partial(keep_result, connection, "count")
    transmit = move(map(sock.send, frames, repeat(NO_SIGNAL | DONT_WAIT)))
    held, start = b"", 0  # received; from `start` not yet part of a message in work
    got, size = -1, 0  # of a message that is larger than `held`, while `got` is not negative
    buffer: "ReceiveBuffer | None" = None  # for it; None: its bytes are discarded
    keep: "ReceiveBuffer | None" = None  # the buffer of `message`, to be used again
    asked = False  # `message` is in work
    added: "Message | None" = None  # is on its way into the queue
    head: "bytes | None" = None  # the prefix of a reply and the reply itself if that is small,
    tail: "Reply" = b""  # else the reply
    sent = replied = 0  # bytes of these; messages that they reply to
    end: "BrokenStream | None" = None  # of the stream, while messages are in the queue
    rest: "list[Bytes]" = []  # of a large reply, for a system call
    is_prompt = True  # the peer: the rest of a large message is worth a wait, see LONGEST_PAUSE
    reply: "Any" = None
    interruptions = 0
    failure: "BaseException | None" = None  # handled in the `try`: another one may arrive then
    while True:
        try:
            rest = []
            while True:
                try:
                    if failure is not None:
                        if is_of_system(failure) and read_errno(failure) in PEER_IS_GONE:
                            if read_errno(failure) in (errno.EBADF, errno.ENOTSOCK):
                                log("user code has closed the descriptor of a connection")
                            return
                        receiving = got < 0 and not asked and head is None
                        needs_memory = receiving or type(tail) is Parts
                        is_memory_error = needs_memory and type(failure) is MemoryError
                        if interruptions > (MAX_RETRIES if is_memory_error else MAX_INTERRUPTIONS):
                            interruptions = MAX_INTERRUPTIONS + 1
                            raise failure
                        log_traceback(failure, ARRIVED)
                        if asked:
                            reply = interrupted(failure)
                            head, tail, asked = pack(len(reply)) + reply, b"", False
                        elif (
                            type(failure) is MemoryError
                            and head is not None
                            and replied < 2
                            and not (sent or connection.count)
                        ):
                            head, tail = pack(len(no_memory)) + no_memory, b""
                        failure = None
                    while True:
                        # Queue: add the message that was read; take replies, or wait for them
                        if queue is not None and head is None:
                            messages = connection.messages
                            if added is not None:
                                if not messages or messages[-1] is not added:
                                    messages.append(added)
                                queue.add(added)
                                added = None
                            if messages and messages[0].reply is not None:
                                head, tail, replied = join_replies(messages, pack)
                                is_prompt = True
                            elif end is not None and not messages:
                                raise end
                            elif end is not None or not queue.has_room(connection):
                                connection.waits_for = REPLY
                                yield
                                continue
                        if head is None and not asked:
                            # Prefix, with as much of the body as comes with it
                            if got < 0:
                                if len(held) < start + 4:
                                    if connection.received is None:
                                        connection.waits_for = READ if len(held) > start else IDLE
                                        yield
                                        if queue is not None and has_reply(connection):
                                            continue
                                        try:
                                            receive()
                                        except BlockingIOError as error:
                                            if not is_of_system(error):
                                                raise
                                            continue
                                    data: "Any" = connection.received
                                    if not data:
                                        text = "connection closed inside a length prefix"
                                        raise BrokenStream(text if len(held) > start else "")
                                    if len(held) > start:
                                        data = held[start:] + data
                                    held, start, connection.received = data, 0, None
                                    if len(held) < 4:
                                        continue
                                size = unpack(held, start)[0]
                                following = start + 4 + size
                                if following <= len(held) and size <= limit:
                                    if queue is not None:
                                        new = Message(connection)
                                        new.body = held[start + 4 : following]
                                        start, added = following, new
                                        continue
                                    message.body = held[start + 4 : following]
                                    start, asked = following, True
                                else:
                                    buffer = None
                                    if size <= limit:
                                        buffer = take_buffer(buffer_pool if queue is None else [])
                                        buffer[: len(held) - start - 4] = held[start + 4 :]
                                    more, is_prompt = held[following:], True
                                    got, held, start = min(size, len(held) - start - 4), more, 0
                            # Body, of a message that did not come with its prefix, or is too large
                            while True:
                                if not 0 <= got < size:
                                    break
                                try:
                                    if connection.count:
                                        pass  # kept when an exception came in between
                                    elif buffer is None:
                                        most = min(size - got, FIRST_BUFFER)
                                        move(map(len, map(sock.recv, (most,), (DONT_WAIT,))))()
                                    else:
                                        if got == len(buffer):
                                            step = min(max(got, FIRST_BUFFER), PIECE, size - got)
                                            buffer.extend(ZEROS if step == PIECE else bytes(step))
                                        most = min(len(buffer), size) - got
                                        flag = WAIT_ALL if is_prompt else DONT_WAIT
                                        is_prompt = False
                                        with memoryview(buffer)[got:size] as view:
                                            move(map(sock.recv_into, (view,), (0,), (flag,)))()
                                        is_prompt = flag == WAIT_ALL and connection.count == most
                                    if not connection.count:
                                        text = "connection closed after %d of %d bytes"
                                        raise BrokenStream(text % (got, size))
                                    got, connection.count = got + connection.count, 0
                                except BlockingIOError as error:
                                    if not is_of_system(error):
                                        raise
                                except MemoryError:
                                    buffer = None
                                if got < size:
                                    connection.waits_for = READ
                                    yield
                                    if queue is not None and has_reply(connection):
                                        break
                                most = 0
                            if got >= size:
                                reply = None
                                if buffer is None:
                                    reply = no_memory
                                    if size > limit:
                                        text = "message of %d bytes exceeds the limit of %d bytes"
                                        text %= (size, limit)
                                        reply = error_reply("connection_error", text)
                                    note_reply(reply)
                                if queue is not None:
                                    new = Message(connection)
                                    new.reply = reply
                                    if buffer is not None:
                                        new.body = memoryview(buffer)[:size]
                                    buffer, got, added = None, -1, new
                                elif reply is not None:
                                    head, tail, got = pack(len(reply)) + reply, b"", -1
                                elif buffer is not None:
                                    message.body = memoryview(buffer)[:size]
                                    keep = buffer if len(buffer) <= POOLED_BUFFER else None
                                    # A large buffer can then be freed
                                    buffer, got, asked = None, -1, True
                            if head is None and not asked:
                                continue
                        # Answer, without a queue
                        if asked:
                            if answer is not None:
                                reply = answer(message)
                            else:
                                connection.waits_for = CALL
                                yield
                                reply = message.reply or UNPRINTABLE  # an exception came in between
                                message.reply = None
                            if len(reply) < FIRST_BUFFER:
                                head, tail, asked = pack(len(reply)) + reply, b"", False
                            else:  # too large to copy
                                head, tail, asked = pack(len(reply)), reply, False
                            reply, is_prompt = None, True
                            if keep is not None:
                                message.body = None
                                buffer_pool[:] = [keep]
                                keep = None
                        # Send
                        total = len(head) + len(tail)  # type: ignore[arg-type]
                        while True:
                            if sent >= total:
                                break
                            try:
                                if connection.count:
                                    pass
                                elif tail:
                                    rest, most = get_rest(head, tail, sent)  # type: ignore[arg-type]
                                    flag, is_prompt = (0 if is_prompt else DONT_WAIT), False
                                    move(map(sock.sendmsg, (rest,), ((),), (NO_SIGNAL | flag,)))()
                                    rest, is_prompt = [], not flag and connection.count == most
                                else:
                                    connection.frame = memoryview(head)[sent:] if sent else head  # type: ignore[assignment, arg-type]
                                    transmit()
                                sent, connection.count = sent + connection.count, 0
                                if sent >= total:
                                    break
                            except BlockingIOError as error:
                                if not is_of_system(error):
                                    raise
                            rest = []
                            if type(tail) is Parts:
                                tail.keep()
                            connection.waits_for = NOW if is_prompt and tail else WRITE
                            yield
                        connection.frame = tail = b""
                        if queue is None:
                            head, sent = None, 0
                        else:
                            rest_of_them = connection.messages[replied:]
                            head, sent, replied, connection.messages = None, 0, 0, rest_of_them
                        connection.new_until = 0.0
                        if len(held) >= start + 4:
                            connection.waits_for = NOW
                            yield
                        interruptions = 0
                except BrokenStream as error:
                    if connection.messages:
                        end = error  # they are answered first
                        continue
                    if str(error):
                        reply = error_reply("connection_error", str(error))
                        note_reply(reply)
                        try:
                            sock.send(pack(len(reply)) + reply, NO_SIGNAL | DONT_WAIT)
                        except OSError:
                            pass
                    return
                except BaseException as error:
                    if connection.waits_for == CLOSED or interruptions > MAX_INTERRUPTIONS:
                        raise
                    interruptions += 1
                    failure = error
        except BaseException as error:  # it arrived while another one was handled
            if connection.waits_for == CLOSED or interruptions > MAX_INTERRUPTIONS:
                raise
            interruptions += 1
            failure = error


def make_patient(sock: "Socket") -> None:
    """Let system calls without DONT_WAIT wait, but not longer than LONGEST_PAUSE."""
    try:
        for option in (_socket.SO_RCVTIMEO, _socket.SO_SNDTIMEO):
            sock.setsockopt(_socket.SOL_SOCKET, option, LONGEST_PAUSE)
        sock.setblocking(True)  # user code may have set a default timeout
    except OSError as error:
        if not is_of_system(error):
            raise
        sock.setblocking(False)


def has_reply(connection: Connection) -> bool:
    """Whether the first message that is not yet answered has its reply."""
    return bool(connection.messages) and connection.messages[0].reply is not None


def join_replies(
    messages: "list[Message]", pack: "Callable[[int], bytes]"
) -> "tuple[bytes, Reply, int]":
    """Return the replies that can be sent, as `head`, `tail` and their number."""
    parts: "list[bytes]" = []
    space = FIRST_BUFFER
    for message in messages:
        reply: "Any" = message.reply
        if reply is None or len(reply) > space:
            break
        space -= len(reply)
        parts += pack(len(reply)), reply
    if parts:
        return b"".join(parts), b"", len(parts) // 2
    return pack(len(reply)), reply, 1


def interrupted(error: BaseException) -> bytes:
    """Build the reply to a message whose handling was interrupted from outside."""
    try:
        return describe("processing_error", error)
    except BaseException:
        return UNPRINTABLE


# --- Queue: messages that are not answered where they are read

BATCH_PATIENCE = 0.02  # seconds that a batch waits for messages that are on their way
REGROWTH = 60.0  # seconds without a memory error after which a batch may have twice as many


class Batch:
    """Messages that are answered together."""

    __slots__ = ("cancel_end", "is_begun", "is_late", "is_taken", "messages", "thread")

    def __init__(self, messages: "list[Message]") -> None:
        self.messages = messages
        self.is_begun = False  # the handler may have seen them: they are not given to it again
        self.is_late = False  # over the deadline: what the call returns does not count
        self.cancel_end = 0.0  # until then, a call that is late and was cancelled may end
        self.is_taken = False  # by the watching thread: it replies, and the call's thread parks
        self.thread = 0  # the thread that answers it; with a deadline only


class Queue:
    """Messages that wait for a call, and the calls that run, on up to `limit` threads.

    A message goes from `waiting` into a batch (`submit`). A batch is in `batches` until its
    replies are with the connections (`release`). With a limit of 1 it is answered in `submit`, on
    the main thread. Else it goes through `jobs` to a thread, which claims it in `claims`, and
    `wake()` tells the server of each one that is added to `finished`.

    An exception may arrive at any point and interrupt these steps. What is in `batches` shows
    what is left to do: `repair`, `resubmit` and `work` do it, each batch once.
    """

    __slots__ = (
        "answer",
        "batches",
        "chunk",
        "claims",
        "failed",
        "finished",
        "jobs",
        "limit",
        "quiet_since",
        "size",
        "stalled",
        "state",
        "threads",
        "wait",
        "waiting",
        "wake",
    )

    def __init__(
        self, settings: Settings, answer: "AnswerAll", wake: "Action", state: State
    ) -> None:
        self.answer, self.wake, self.state = answer, wake, state
        self.limit, self.size = settings.concurrency, settings.batch_size
        self.wait = settings.batch_wait
        self.chunk = max(settings.chunk_size, FIRST_BUFFER if self.size > 1 else 0)
        self.waiting: "dict[Message, None]" = {}  # in the order of their arrival
        self.stalled: "dict[Connection, None]" = {}  # they wait for room here
        self.batches: "dict[Batch, None]" = {}
        self.claims: "dict[Batch, int]" = {}
        self.jobs: "_queue.SimpleQueue[Batch]" = _queue.SimpleQueue()
        self.finished: "_collections.deque[Batch]" = _collections.deque()
        self.threads = 0
        self.failed = False  # to start a thread, which is logged once
        self.quiet_since = 0.0  # since when a batch could begin but for messages on their way

    def has_room(self, connection: Connection) -> bool:
        """Whether a connection may read one more message."""
        if len(connection.messages) >= self.size:
            return False
        if self.size > 1 and len(self.waiting) >= self.size * self.limit:
            self.stalled[connection] = None
            return False
        return True

    def add(self, message: "Message") -> None:
        """Let a message wait, unless it has its reply. May be repeated."""
        if message.reply is None:
            if self.wait:
                message.arrived = time.monotonic()
            self.waiting[message] = None

    def get_delay(self, hurry: bool, on_their_way: bool) -> "float | None":
        """Return the seconds until a batch is to begin; None: nothing waits, or no thread is free.

        `hurry`: ASYA_BATCH_WAIT is over. `on_their_way`: more may come within BATCH_PATIENCE.
        """
        if not self.waiting or (self.size > 1 and len(self.batches) >= self.limit):
            return None
        if self.size > 1 and self.batches and not self.get_next():
            return None
        is_full = len(self.waiting) >= min(self.size, self.state.batch_limit)
        if is_full or (hurry and not on_their_way):
            return 0.0
        now = time.monotonic()
        delay = 0.0 if hurry else next(iter(self.waiting)).arrived + self.wait - now
        if on_their_way:
            self.quiet_since = self.quiet_since or now
            delay = max(delay, self.quiet_since + BATCH_PATIENCE - now)
        return max(0.0, delay)

    def get_next(self) -> "list[Message]":
        """Return the messages of the next batch. A connection is in one batch at a time."""
        running: "set[Connection]" = set()
        if self.size > 1:
            running.update(one.connection for batch in self.batches for one in batch.messages)
        state, most = self.state, self.size
        if most > 1:
            while state.batch_limit < most and time.monotonic() > state.limited_at + REGROWTH:
                state.batch_limit *= 2
                state.limited_at += REGROWTH
            most = min(most, state.batch_limit)
        messages: "list[Message]" = []
        for message in self.waiting:
            if message.connection not in running:
                messages.append(message)
                if len(messages) == most:
                    break
        return messages

    def submit(self) -> None:
        """Begin a batch: here with a limit of 1, else on a thread."""
        batch = Batch(self.get_next())
        self.batches[batch] = None
        for message in batch.messages:
            self.waiting.pop(message, None)
        self.quiet_since = 0.0
        if self.limit == 1 or self.state.exit_code:
            self.claims[batch] = _thread.get_ident()
            self.finish(batch)
            return
        self.jobs.put(batch)
        if self.threads < min(len(self.batches), self.limit):
            try:
                start_thread(persist(persist(self.work)))
                self.threads += 1
            except RuntimeError as error:
                if not self.failed:
                    self.failed = True
                    log("cannot start a worker thread, %d are running: %s" % (self.threads, error))
                if not self.threads:
                    self.answer_next()

    def answer_next(self) -> None:
        """Answer the next batch, unless another thread has it."""
        batch = self.jobs.get()
        own = _thread.get_ident()
        if batch in self.batches and self.claims.setdefault(batch, own) == own:
            self.finish(batch)

    def finish(self, batch: Batch) -> None:
        """Answer a batch. What an exception has interrupted is not begun again."""
        replies: "list[Reply]" = []
        if not batch.is_begun:
            batch.is_begun = True
            replies = self.answer(batch)
            if self.state.forked:  # while a result was encoded, or an error printed
                exit_child(None)
        _collections.deque(map(setattr, batch.messages, repeat("reply"), replies), 0)  # in one step
        for message in batch.messages:
            if message.reply is None:
                message.reply = UNPRINTABLE
                self.state.note_reply(UNPRINTABLE)
        self.finished.append(batch)
        if self.limit > 1:
            self.wake()

    def abandon(self) -> None:
        """Answer here what no thread has begun: those there are may hang."""
        own = _thread.get_ident()
        for batch in list(self.batches):
            if self.claims.setdefault(batch, own) == own and batch not in self.finished:
                self.finish(batch)

    def work(self) -> None:
        """Answer messages until the process ends."""
        own = _thread.get_ident()
        while True:
            try:
                for batch in [one for one, thread in list(self.claims.items()) if thread == own]:
                    if batch not in self.finished:
                        self.finish(batch)
                while True:
                    self.answer_next()
            except BaseException as error:
                log_traceback(error, "an exception arrived between calls; the worker goes on")
                self.resubmit()

    def resubmit(self) -> None:
        """Queue again what an exception may have kept from the threads."""
        for batch in list(self.batches):
            if batch not in self.claims:
                self.jobs.put(batch)

    def repair(self, connections: "Iterable[Connection]") -> None:
        """Find again what an exception may have kept from the queue or from being finished."""
        for batch in list(self.batches):
            for message in batch.messages:
                self.waiting.pop(message, None)
            if self.limit == 1 and batch not in self.finished:
                self.finish(batch)
        known = {message for batch in self.batches for message in batch.messages}
        for connection in connections:
            for message in connection.messages:
                if message not in known:
                    self.add(message)
        self.resubmit()

    def release(self, batch: Batch) -> None:
        """Forget a batch, whose replies are with the connections. May be repeated."""
        self.batches.pop(batch, None)
        self.claims.pop(batch, None)


# --- Deadline

CANCEL_PATIENCE = 1.0  # seconds in which a coroutine has to end after its cancellation
PATIENCE = 5.0  # seconds to wait at the end for peers that do not read and for threads
# Seconds without this thread after which faulthandler ends the process: a machine may be busy for
# a moment, and a longer time is an error there
LEAST_SILENCE, MOST_SILENCE = 1.0, 1e9
MAX_LATE = 3  # calls over the deadline, one after the other, after which the process is restarted


class Deadline:
    """Calls that run, and how they end when they run too long.

    `began` has the batches of the calls that run. `run` and the watching thread both try to
    remove a late one; who succeeds replies to it.
    """

    __slots__ = ("began", "late_in_a_row", "late_reply", "limit", "state")

    def __init__(self, limit: float, state: State) -> None:
        self.limit, self.state = limit, state
        self.began: "dict[Batch, float]" = {}
        self.late_in_a_row = 0
        text = "the call ran longer than %g s, the deadline of ASYA_HANDLER_DEADLINE" % limit
        kind = "HandlerDeadlineExceeded"
        self.late_reply = error_reply("processing_error", text, kind, "recoverable", 1)
        state.renew_deadline = self.renew

    def renew(self, batch: Batch) -> None:
        """Let the deadline of a batch begin again: a smaller call follows the one that failed."""
        if self.began.pop(batch, None) is not None:
            self.began[batch] = time.monotonic()
        elif batch.is_taken:
            park()

    def run(self, batch: Batch, answer: "AnswerAll") -> "list[Reply]":
        """Return the replies to a batch; never, if the watch has taken it and replies itself."""
        batch.thread = _thread.get_ident()
        replies: "list[Reply]" = []
        try:
            self.began[batch] = time.monotonic()
            replies = answer(batch)
        finally:
            if self.began.pop(batch, None) is None and batch.is_taken:
                park()
        if not batch.is_late:
            self.late_in_a_row = 0
            return replies
        self.late_in_a_row += 1
        if self.late_in_a_row == MAX_LATE:
            self.state.exit_reason = "%d calls in a row exceeded the deadline" % MAX_LATE
            self.state.exit_code = EXIT_BROKEN
        for _ in batch.messages:
            self.state.note_reply(self.late_reply)
        return [self.late_reply] * len(batch.messages)


def make_enforce_deadline(
    deadline: Deadline, caller: Caller, state: State, give_up_call: "Callable[[Batch], None]"
) -> "Callable[[], float]":
    """Return a function for the watch: end late calls, return the seconds until its next turn.

    A coroutine is cancelled. Any other call cannot be ended: its messages are answered, and the
    process ends with status 75, which `give_up_call` begins. Code that keeps the interpreter's
    lock stops this thread too; then faulthandler, which is armed here before the first call and
    re-armed as long as the watch runs, ends the process after twice the deadline.
    """
    limit = deadline.limit
    armed = 0.0  # until when

    def arm(seconds: float) -> None:
        seconds = min(max(seconds, LEAST_SILENCE), MOST_SILENCE)
        faulthandler.dump_traceback_later(seconds, exit=True, file=2)

    def enforce_deadline() -> float:
        nonlocal armed
        now = time.monotonic()
        if now >= armed:
            arm(2 * limit)
            armed = now + max(0.1, limit / 8)
        nearest = armed
        for batch, began in list(deadline.began.items()):
            end = batch.cancel_end if batch.is_late else began + limit
            if now >= end:
                was_late, batch.is_late = batch.is_late, True
                if was_late or not caller.cancel(batch.thread):
                    take(batch)
                    continue
                log("a call is cancelled, it runs longer than the deadline of %g s" % limit)
                # From now on, because this thread may have been late itself
                end = batch.cancel_end = time.monotonic() + CANCEL_PATIENCE
            nearest = min(nearest, end)
        return max(0.0, min(nearest - time.monotonic(), LONGEST_WAIT))

    def take(batch: Batch) -> None:
        batch.is_taken = True
        if deadline.began.pop(batch, None) is None:
            return  # it has just ended
        state.memory_limit.lift()  # which the call has on
        state.exit_reason = "a call does not end within the deadline of %g s" % limit
        for message in batch.messages:
            message.reply = deadline.late_reply
            state.note_reply(deadline.late_reply)
        state.exit_code = EXIT_BROKEN
        arm(2 * limit + 2 * PATIENCE)  # this thread may be away twice: to answer, and to log
        give_up_call(batch)

    try:
        arm(2 * limit)  # the watch may not run before the first call
    except (MemoryError, RuntimeError):
        pass  # no thread: the watch says so
    return enforce_deadline


def park() -> None:
    """Keep a thread, for whose call another one replies, until the process ends."""
    while True:
        try:
            time.sleep(LONGEST_WAIT)
        except BaseException:
            pass  # from outside


def log_stacks() -> None:
    """Log where each thread is."""
    for thread, frame in current_frames().items():
        stack = "".join(format_stack(frame))
        log("thread %d is here:\n%s" % (thread, stack[-5000:].rstrip()))


def exit_with_stacks(code: int, reason: str) -> None:
    """Log why, and where each thread is; end the process, soon if nobody reads the log."""

    def insist() -> None:
        time.sleep(PATIENCE)
        os._exit(code)

    try:
        start_thread(insist)
        log(reason + "; exiting")
        log_stacks()
        flush_streams()
    except BaseException:
        pass
    os._exit(code)


# --- Metrics

STEPS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0)  # seconds of decoding and encoding
CALLS = (1e-3, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
MOST_RAW = 120000  # values of one kind that wait, a multiple of 6; the oldest are lost then
FOLD_PAUSE = 0.25  # seconds between two folds
SCRAPER_TIME = 2.0  # seconds for one scraper
SCRAPER_PAUSE = 0.02  # seconds between two events: many scrapers cannot take the handler's time
MOST_SCRAPERS = 64
TEXT_TIME = 0.5  # seconds for which a text is used again
PORT_PAUSE = 5.0  # seconds between two attempts to get the port
HEAD_LIMIT = 16384  # bytes of a request
TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KIND_LABELS = {"sticky": "gpu_context_lost"}
# name: (type, help)
METRICS = {
    "asya_messages_total": ("counter", "Messages that were answered, by outcome: ok or the code."),
    "asya_handler_seconds": ("histogram", "Duration of the calls of the handler."),
    "asya_decode_seconds": ("histogram", "Duration of decoding, of messages that are JSON."),
    "asya_encode_seconds": ("histogram", "Duration of encoding, of results that are JSON."),
    "asya_batch_size": ("histogram", "Messages in a call; those above all bounds were full."),
    "asya_received_bytes_total": ("counter", "Bytes of the messages that were to be handled."),
    "asya_sent_bytes_total": ("counter", "Bytes of the replies."),
    "asya_connections": ("gauge", "Open connections."),
    "asya_connections_waiting": ("gauge", "Connections with a message that no call has begun."),
    "asya_call_running_seconds": ("gauge", "How long the longest call has been running; or 0."),
    "asya_memory_errors_total": ("counter", "Memory errors of calls, by kind."),
    "asya_batch_limit": ("gauge", "Messages that a call may have now."),
    "process_start_time_seconds": ("gauge", "Start of the process, as Unix time."),
    "process_resident_memory_bytes": ("gauge", "Resident memory of the process."),
    "asya_runtime_info": ("gauge", "Versions, JSON library and handler."),
}


class Raw:
    """Values that the threads which serve append, and the thread of the metrics takes."""

    __slots__ = ("append", "pop", "values")

    def __init__(self) -> None:
        self.values: "_collections.deque[Any]" = _collections.deque(maxlen=MOST_RAW)
        self.append, self.pop = self.values.append, self.values.popleft

    def take(self) -> "list[Any]":
        """Return the values there are, in C: a loop here would cost as much as the messages."""
        return list(starmap(self.pop, repeat((), len(self.values))))


def transpose(records: "list[Any]") -> "Sequence[Any]":
    """Return the columns of the records of messages."""
    return tuple(zip(*records)) or ((),) * 6  # noqa: B905


O_OF_OK = 111  # at this place of a reply, the 12th byte, an error has an "e"


def summarize(reply: "Reply") -> "int | tuple[int, str]":
    """Return the size of a reply; with its code if it is an error."""
    if reply[11] == O_OF_OK:
        return len(reply)
    head = bytes(reply[:64])
    return len(reply), head[27 : head.find(b'"', 27)].decode("ascii", "replace")


class Histogram:
    """Observed values, counted by upper bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: "Iterable[float]") -> None:
        self.bounds, self.total = tuple(map(float, bounds)), 0.0
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, values: "Sequence[Any]") -> None:
        """Count values, quickly where most of them are of one or two buckets."""
        self.total += sum(values)
        for at, bound in enumerate(self.bounds):
            if not values:
                return
            if min(values) <= bound:
                above = [] if max(values) <= bound else [one for one in values if one > bound]
                self.counts[at] += len(values) - len(above)
                values = above
        self.counts[-1] += len(values)

    def render(self, name: str) -> "Iterator[str]":
        """Yield its lines."""
        count = 0
        for at, bound in enumerate((*self.bounds, "+Inf")):
            count += self.counts[at]
            yield '%s_bucket{le="%s"} %d' % (name, bound, count)
        yield "%s_sum %r" % (name, self.total)
        yield "%s_count %d" % (name, count)


class Metrics:
    """What is measured, and its text.

    The path of a message only appends raw values; `fold` is called several times a second. Where a
    message is answered as it is read, that is in one step, because this costs least.
    """

    def __init__(self, settings: Settings, state: State) -> None:
        self.settings, self.state = settings, state
        size = settings.batch_size
        below = {2**power for power in range(10) if 2**power < size} | ({size - 1} - {0})
        self.handler, self.batches = Histogram(CALLS), Histogram(sorted(below))
        self.decode, self.encode = Histogram(STEPS), Histogram(STEPS)
        # Six values a message, see `count_answer`; else seconds, sizes, results of `summarize`
        self.records, self.times = Raw(), [0.0, 0.0]  # when the latest call began, and ended
        self.calls, self.decodings, self.encodings, self.sizes = Raw(), Raw(), Raw(), Raw()
        self.received, self.replies, self.kinds = Raw(), Raw(), Raw()
        self.running: "dict[int, float]" = {}  # when the call of each thread began
        self.outcomes = dict.fromkeys(("ok", *CODES), 0)
        self.memory_errors = dict.fromkeys(("oom_error", "cuda_oom_error", "sticky"), 0)
        self.received_bytes = self.sent_bytes = 0
        self.started = read_start_time()
        state.note_reply = lambda reply: self.replies.append(summarize(reply))
        state.note_memory_error = self.kinds.append

    def measure(
        self, codec: "Codec", watch_call: "Callable[[Caller], Call]"
    ) -> "tuple[tuple[Any, ...], Callable[[Caller], Call]]":
        """Return the same functions, which also note how long they took."""
        clock, get_ident = time.monotonic, _thread.get_ident
        times, running = self.times, self.running
        note_call, note_size = self.calls.append, self.sizes.append
        is_batch = self.settings.batch_size > 1

        def measure_alone(caller: Caller) -> "Call":
            call, complete = watch_call(caller), caller.complete

            def measured_call(request: "Any") -> object:
                times[0] = clock()
                try:
                    result = call(request)
                    return result if type(result) in PLAIN else complete(result)
                finally:
                    times[1] = clock()

            return measured_call

        def measure_call(caller: Caller) -> "Call":
            call, complete = watch_call(caller), caller.complete

            def measured_call(request: "Any") -> object:
                if is_batch:
                    note_size(len(request))
                own = get_ident()
                running[own] = began = clock()
                try:
                    result = call(request)
                    return result if type(result) in PLAIN else complete(result)
                finally:
                    note_call(clock() - began)
                    running.pop(own, None)

            return measured_call

        def measure_step(work: "Any", note: "Callable[[float], None]") -> "Any":
            def measured_step(message: Message) -> "Any":
                began = clock()
                result = work(message)
                note(clock() - began)
                return result

            return measured_step

        if not (is_batch or self.settings.concurrency > 1 or self.settings.handler_deadline):
            return codec, measure_alone
        decode, *encoders = codec
        steps = [measure_step(encode, self.encodings.append) for encode in encoders]
        return (measure_step(decode, self.decodings.append), *steps), measure_call

    def count(self, answers: "tuple[Answer, AnswerAll]") -> "tuple[Answer, AnswerAll]":
        """Return the same functions, which also note what they were given and have returned."""
        answer, answer_all = answers
        clock, times, note = time.monotonic, self.times, self.records.values.extend

        def count_answer(message: Message) -> "Reply":
            began, size = clock(), len(message.body)  # type: ignore[arg-type]
            try:
                reply = answer(message)
            except BaseException as error:  # from outside; the connection answers it like this
                note((began, *times, clock(), size, summarize(interrupted(error))))
                raise
            summary = len(reply) if reply[11] == O_OF_OK else summarize(reply)
            note((began, times[0], times[1], clock(), size, summary))
            return reply

        def count_answer_all(batch: Batch) -> "list[Reply]":
            self.received.values.extend([len(message.body or b"") for message in batch.messages])
            replies = answer_all(batch)
            if not batch.is_late:  # else another reply is sent
                self.replies.values.extend(map(summarize, replies))
            return replies

        return count_answer, count_answer_all

    def fold(self) -> None:
        """Count the raw values: in C if all replies are successes, because it costs CPU time."""
        values = self.records.take()
        called: "Sequence[Any]" = [values[at::6] for at in range(6)]
        good = called
        self.add_sizes(called[4])
        if not self.add_replies(called[5]):
            some = [one for one in zip(*called) if one[1] >= one[0]]  # noqa: B905
            called = transpose(some)
            good = transpose([one for one in some if type(one[5]) is int])
        self.decode.add(tuple(map(subtract, called[1], called[0])))
        self.handler.add(tuple(map(subtract, called[2], called[1])))
        self.encode.add(tuple(map(subtract, good[3], good[2])))
        self.handler.add(self.calls.take())
        self.decode.add(self.decodings.take())
        self.encode.add(self.encodings.take())
        if self.settings.batch_size == 1:
            self.batches.counts = [sum(self.handler.counts)]
            self.batches.total = float(self.batches.counts[0])
        else:
            self.batches.add(self.sizes.take())
        self.add_sizes(self.received.take())
        self.add_replies(self.replies.take())
        for kind in self.kinds.take():
            self.memory_errors[kind] = self.memory_errors.get(kind, 0) + 1

    def add_sizes(self, sizes: "Sequence[int]") -> None:
        """Count what was received: each message has a prefix of four bytes."""
        self.received_bytes += sum(sizes) + 4 * len(sizes)

    def add_replies(self, replies: "Sequence[Any]") -> bool:
        """Count results of `summarize`. Return whether all are of successes."""
        self.sent_bytes += 4 * len(replies)
        try:
            self.sent_bytes += sum(replies)
        except TypeError:
            for reply in replies:
                size, code = reply if type(reply) is tuple else (reply, "ok")
                self.sent_bytes += size
                self.outcomes[code] = self.outcomes.get(code, 0) + 1
            return False
        self.outcomes["ok"] += len(replies)
        return True

    def get_running_time(self) -> float:
        """Return for how long the longest call has been running; 0 if none does."""
        began = list(self.running.values())
        if self.times[0] > self.times[1]:
            began.append(self.times[0])
        now = time.monotonic()
        return max(0.0, now - min(began, default=now))

    def find_waiting(self) -> "tuple[int, int]":
        """Return the numbers of connections, and of those with a message that no call has begun."""
        connections = list(self.state.connections.values())
        queue = self.state.queue
        waiting = set() if queue is None else {one.connection for one in list(queue.waiting)}
        for connection in connections:
            try:
                if connection.sock.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT):
                    waiting.add(connection)
            except OSError:
                pass  # nothing is there, or it was closed
        return len(connections), len(waiting)

    def render(self) -> str:
        """Return the text that Prometheus reads."""
        self.fold()
        connections, waiting = self.find_waiting()
        values: "dict[str, Any]" = {
            "asya_received_bytes_total": self.received_bytes,
            "asya_sent_bytes_total": self.sent_bytes,
            "asya_connections": connections,
            "asya_connections_waiting": waiting,
            "asya_call_running_seconds": "%.6f" % self.get_running_time(),
            "asya_batch_limit": min(self.settings.batch_size, self.state.batch_limit),
            "process_start_time_seconds": "%.2f" % self.started,
            "process_resident_memory_bytes": read_resident_memory(),
            "asya_messages_total": {"outcome": self.outcomes},
            "asya_memory_errors_total": {"kind": self.memory_errors},
            "asya_handler_seconds": self.handler,
            "asya_decode_seconds": self.decode,
            "asya_encode_seconds": self.encode,
            "asya_batch_size": self.batches,
        }
        info = {
            "version": VERSION,
            "python": sys.version.split()[0],
            "json": self.state.json.partition(",")[0],
            "handler": self.settings.handler,
        }
        labels = ",".join('%s="%s"' % (name, quote_label(text)) for name, text in info.items())
        lines = []
        for name, (kind, about) in METRICS.items():
            lines += ["# HELP %s %s" % (name, about), "# TYPE %s %s" % (name, kind)]
            value = values.get(name)
            if value is None:
                lines.append("%s{%s} 1" % (name, labels))
            elif isinstance(value, Histogram):
                lines += value.render(name)
            elif isinstance(value, dict):
                for label, counts in value.items():
                    for text, count in counts.items():
                        text = quote_label(KIND_LABELS.get(text, text))
                        lines.append('%s{%s="%s"} %d' % (name, label, text, count))
            else:
                lines.append("%s %s" % (name, value))
        return "\n".join(lines) + "\n"


def quote_label(text: str) -> str:
    """Return the value of a label as Prometheus reads it."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def read_start_time() -> float:
    """Return when this process began, as Unix time."""
    try:
        with open("/proc/self/stat", "rb") as stream:
            ticks = int(stream.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        age = 0.0
    return time.time() - age


def read_resident_memory() -> int:
    """Return the bytes of memory that this process has; 0 if nobody knows."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


class Scraper:
    """One connection of a scraper."""

    __slots__ = ("latest", "reply", "request", "sock")

    def __init__(self, sock: "Socket") -> None:
        self.sock, self.latest = sock, time.monotonic() + SCRAPER_TIME
        self.request = self.reply = b""


def start_metrics(settings: Settings, state: State) -> "Metrics | None":
    """Measure from now on, and answer scrapers from a thread; None if it cannot be started.

    What scrapers can take is bounded: they are accepted one at a time with a pause after each, and
    where there are too many, the oldest goes.
    """
    metrics, port = Metrics(settings, state), settings.metrics_port
    scrapers: "dict[int, Scraper]" = {}  # by fd, the oldest first
    listener: "Any" = None
    is_open: "Callable[[], bool]" = bool
    next_attempt, is_known = 0.0, False  # to listen; that the port cannot be had
    text, text_until = b"", 0.0

    def listen() -> None:
        nonlocal listener, is_open, next_attempt, is_known
        reason = ""
        for family, address in ((_socket.AF_INET6, "::"), (_socket.AF_INET, "0.0.0.0")):  # noqa: S104
            sock = None
            try:
                sock = _socket.socket(family, _socket.SOCK_STREAM)
                sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
                if family == _socket.AF_INET6:
                    sock.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 0)
                sock.bind((address, port))
                sock.listen(128)
                sock.setblocking(False)
            except OSError as error:
                reason = error.strerror or str(error)
                if sock is not None:
                    sock.close()
                continue
            is_open, listener, is_known = make_is_open(sock.fileno()), sock, False
            return
        next_attempt = time.monotonic() + PORT_PAUSE
        if not is_known:
            is_known = True
            form = "ASYA_METRICS_PORT=%d: %s; free it or set another port; trying again every %g s"
            log(form % (port, reason, PORT_PAUSE))

    def step() -> None:
        """Count what there is; then answer scrapers, or wait for them."""
        nonlocal listener
        if listener is not None and not is_open():  # user code has closed it
            listener.detach()
            listener = None
        if listener is None and time.monotonic() >= next_attempt:
            listen()
        metrics.fold()
        poll = select.poll()
        for fd, scraper in scrapers.items():
            poll.register(fd, select.POLLOUT if scraper.reply else select.POLLIN)
        if listener is not None:
            poll.register(listener, select.POLLIN)
        events = poll.poll(1000 * FOLD_PAUSE)
        for fd, _ in events:
            try:
                if fd not in scrapers:
                    accept()
                elif advance(scrapers[fd]):
                    drop(fd)
            except OSError:  # it has left, or the process has used up its descriptors
                drop(fd)
        for fd, scraper in list(scrapers.items()):
            if scraper.latest < time.monotonic():
                drop(fd)
        if events:
            time.sleep(SCRAPER_PAUSE)

    def accept() -> None:
        fd = listener._accept()[0]
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, fd)
        sock.setblocking(False)
        if len(scrapers) >= MOST_SCRAPERS:
            drop(next(iter(scrapers)))
        scrapers[fd] = Scraper(sock)

    def advance(scraper: Scraper) -> bool:
        """Receive or send a part. Return whether that was the last one."""
        if not scraper.reply:
            data = scraper.sock.recv(4096)
            scraper.request = request = scraper.request + data
            if b"\r\n\r\n" in request or len(request) >= HEAD_LIMIT:
                scraper.reply = build_response(request)
            elif not data:
                return True
        if scraper.reply:
            scraper.reply = scraper.reply[scraper.sock.send(scraper.reply, NO_SIGNAL) :]
            if not scraper.reply:
                scraper.sock.shutdown(_socket.SHUT_WR)
                return True
        return False

    def drop(fd: int) -> None:
        scraper = scrapers.pop(fd, None)
        if scraper is not None:
            close_quietly(scraper.sock.close)

    def build_response(request: bytes) -> bytes:
        nonlocal text, text_until
        method, _, rest = request.partition(b"\r\n")[0].partition(b" ")
        target, _, version = rest.partition(b" ")
        status, body = "200 OK", b""
        if len(request) >= HEAD_LIMIT:
            status = "431 Request Header Fields Too Large"
        elif not version.startswith(b"HTTP/1."):
            status = "400 Bad Request"
        elif target.partition(b"?")[0] != b"/metrics":
            status = "404 Not Found"
        elif method not in (b"GET", b"HEAD"):
            status = "405 Method Not Allowed"
        else:
            now = time.monotonic()
            if now > text_until:
                text, text_until = metrics.render().encode("utf-8", "replace"), now + TEXT_TIME
            body = text
        body = body or (status + "\n").encode()
        form = "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        head = (form % (status, TEXT_TYPE, len(body))).encode()
        return head if method == b"HEAD" else head + body

    def serve_forever() -> None:
        while True:
            try:
                while True:
                    step()
            except BaseException as error:
                log_traceback(error, "answering a scraper failed; the metrics go on")
                time.sleep(PAUSE)

    def close_in_child() -> None:
        if listener is not None and is_open():
            close_quietly(listener.close)
        for fd in list(scrapers):
            drop(fd)

    os.register_at_fork(after_in_child=close_in_child)
    try:
        start_thread(persist(persist(serve_forever)))
    except RuntimeError as error:
        log("ASYA_METRICS_PORT=%d: there are no metrics, a thread cannot start: %s" % (port, error))
        state.note_reply = state.note_memory_error = ignore
        return None
    return metrics


# --- Server

PAUSE = 1.0  # seconds between attempts to accept when no connection can be closed
HANG_LIMIT = 4.0  # seconds to wait for calls beside one that has lost the GPU context
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class Waker:
    """A pipe that interrupts a wait."""

    __slots__ = ("reader", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)

    def wake(self) -> None:
        """Interrupt the wait."""
        writer = self.writer
        if writer < 0:
            return
        try:
            os.write(writer, b"!")
        except OSError as error:
            is_closed = error.errno == errno.EBADF and is_of_system(error)
            if is_closed and self.writer == writer:  # else it was just closed
                give_up("user code has closed descriptors of the server")
            # else it is full, and so readable

    def clear(self) -> None:
        """Forget what was written."""
        try:
            os.read(self.reader, 4096)
        except OSError:
            pass

    def close(self) -> None:
        """Close both ends."""
        reader, self.reader, writer, self.writer = self.reader, -1, self.writer, -1
        close_quietly(lambda: os.close(reader))
        close_quietly(lambda: os.close(writer))


def give_up(reason: str) -> None:
    """End a process that cannot serve any more, so that it is restarted."""
    log("%s; exiting" % reason)
    flush_streams()
    os._exit(EXIT_BROKEN)


class Server:
    """What the parts of the server share, and what an exception may interrupt, until it is done."""

    __slots__ = (
        "answer_call",
        "backlog_is_empty",
        "closing",
        "connections",
        "deadlines",
        "leaving",
        "patience",
        "paused",
        "poll",
        "ready",
        "waker",
    )

    answer_call: "Callable[[Connection], None]"  # with a deadline

    def __init__(self, patience: float) -> None:
        self.poll, self.waker = select.epoll(), Waker()
        self.connections: "dict[int, Connection]" = {}  # by fd
        self.deadlines: "dict[int, float]" = {}  # by fd: of what waits inside a frame
        self.ready: "list[Connection]" = []  # they go on without an event
        self.leaving: "set[int]" = set()  # fds; nothing more is read from them
        self.closing: "_collections.deque[Connection]" = _collections.deque()
        self.patience = patience  # seconds that a peer may pause inside a frame
        self.paused = 0.0  # when accepting goes on; 0: it is not paused
        self.backlog_is_empty = False  # after the listener was shut down

    def listen(self, fd: int, interest: "int | None", is_known: bool = False) -> None:
        """Poll for events of a descriptor, or for none. May be repeated.

        `is_known`: it is polled, which saves a system call if it is true.
        """
        try:
            if interest is None:
                self.poll.unregister(fd)
                return
            if is_known:
                self.poll.modify(fd, interest)
                return
        except FileNotFoundError:
            if interest is None:
                return
        try:
            self.poll.register(fd, interest)
        except FileExistsError:
            self.poll.modify(fd, interest)

    def advance(self, connection: Connection) -> None:
        """Continue a connection until it waits again."""
        try:
            connection.resume(None)
            while connection.waits_for == CALL:
                self.answer_call(connection)
                connection.resume(None)
        except BaseException as error:
            if connection.conversation.gi_frame is not None:
                raise  # not of the conversation: it goes on
            if not is_a(error, StopIteration):
                log("closing a connection, which cannot be served: %s" % name_type(error))
            self.close(connection)
            return
        if connection.waits_for or connection.settled:  # else: answered, and waits for the next
            self.settle(connection)

    def settle(self, connection: Connection) -> None:
        """Prepare for what a connection waits for. May be repeated after an exception."""
        fd, before, waits_for = connection.fd, connection.settled, connection.waits_for
        if waits_for in (READ, WRITE):
            self.deadlines[fd] = time.monotonic() + self.patience
        else:
            self.deadlines.pop(fd, None)
        if waits_for != before:
            if connection.is_muted or WRITE in (waits_for, before):
                interest = select.EPOLLOUT if waits_for == WRITE else select.EPOLLIN
                self.listen(fd, interest, not connection.is_muted)
                connection.is_muted = False
            connection.settled = waits_for
        if waits_for == NOW:
            self.ready.append(connection)

    def mute(self, connection: Connection) -> None:
        """Poll a connection no more until it waits for something else."""
        connection.is_muted = True
        self.listen(connection.fd, None)

    def close(self, connection: Connection) -> None:
        """Close a connection, and make room for another."""
        self.closing.append(connection)
        self.finish_closing()

    def finish_closing(self) -> None:
        """Close the connections that are to be closed. May be repeated."""
        while self.closing:
            connection = self.closing[0]
            self.connections.pop(connection.fd, None)
            self.deadlines.pop(connection.fd, None)
            self.leaving.discard(connection.fd)
            connection.waits_for = CLOSED
            close_quietly(connection.sock.close)
            if self.paused:
                self.paused = time.monotonic()  # now
            self.closing.popleft()

    def stop_reading(self, connection: Connection) -> None:
        """Let the peer's next write fail; what is here can still be read, and is answered.

        May be repeated.
        """
        close_quietly(lambda: connection.sock.shutdown(_socket.SHUT_RD))
        self.leaving.add(connection.fd)

    def expire(self, now: float, active: "Iterable[int]", seconds: float) -> None:
        """Close what stalled inside a frame: late before a poll that brought nothing for it."""
        late = [fd for fd in self.deadlines if self.deadlines[fd] <= now]
        for connection in [self.connections[fd] for fd in late if fd not in active]:
            if connection.waits_for == READ:  # inside a reply there is no place for another
                text = "timed out after %g s in the middle of a frame" % seconds
                try:
                    connection.conversation.throw(BrokenStream(text))
                    self.settle(connection)  # its other messages are answered first
                    continue
                except StopIteration:
                    pass
            self.close(connection)


def make_accept(
    server: Server,
    listener: "Socket",
    make_conversation: "Callable[[Connection], Conversation]",
    reserve_std_fds: "Action",
) -> "tuple[Action, Action, Action]":
    """Return `accept()` of one connection, `add_accepted()` after an exception, and `close()`."""
    accepted: "_collections.deque[int]" = _collections.deque()  # fds, not yet of a connection
    sockets: "dict[int, Socket]" = {}  # of these
    connections, deadlines = server.connections, server.deadlines
    accept_fd = _socket.socket._accept  # type: ignore[attr-defined]
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = 1000 if open_files < 0 else min(1000, max(4, open_files // 2))
    spare = os.dup(server.waker.reader)  # closed to accept where no descriptor is left; -1: in use

    def make_room() -> bool:
        """Close the connection that has been quiet longest; return whether there is room now.

        Before it is closed, what it has sent is answered, and what it sends from now on fails.
        """
        if server.leaving:
            return False

        def has_sent(connection: Connection) -> bool:
            try:
                return bool(connection.sock.recv(1, _socket.MSG_PEEK | DONT_WAIT))
            except OSError:
                return False

        now = time.monotonic()
        alone = [one for one in connections.values() if not one.messages]
        idle = [one for one in alone if one.waits_for == IDLE]
        stalled = [
            one
            for one in alone
            if one.waits_for == READ and deadlines[one.fd] - server.patience < now - PAUSE
        ]
        for connection in (
            sorted(idle, key=lambda one: (has_sent(one), one.turn))[:1]
            or sorted(stalled, key=lambda one: deadlines[one.fd])[:1]
        ):
            if connection.new_until > now:
                return False  # soon it may be closed; others have been quiet for less time
            server.stop_reading(connection)
            server.advance(connection)
            return connection.fd not in server.leaving
        return False

    def pause(seconds: float) -> None:
        """Stop accepting until a connection is closed, or the time is over."""
        server.paused = time.monotonic() + seconds
        server.listen(listener.fileno(), None)

    def accept() -> None:
        nonlocal spare
        if len(connections) >= limit and not make_room():
            pause(GRACE)
            return
        if spare < 0:
            try:
                spare = os.dup(server.waker.reader)
            except OSError:
                pass
        take_one()
        add_accepted()

    def take_one() -> None:
        nonlocal spare
        try:
            accepted.extend(map(itemgetter(0), map(accept_fd, (listener,))))
        except OSError as error:
            if not is_of_system(error):
                raise
            if error.errno in (errno.EAGAIN, errno.EINVAL):  # EINVAL: and the listener is shut down
                server.backlog_is_empty = True
            elif error.errno in NO_ROOM and spare >= 0:
                fd, spare = spare, -1  # first: it may soon be the descriptor of a connection
                os.close(fd)
                take_one()
            elif error.errno in NO_ROOM and not make_room():
                log("cannot accept a connection: %s" % error.strerror)
                pause(PAUSE)

    def add_accepted() -> None:
        """Make a connection of what was accepted. May be repeated after an exception."""
        while accepted:
            fd = accepted[0]
            if fd < 3:  # user code has closed that one: its prints would go here
                reserve_std_fds()
                if len(accepted) == 1:
                    accepted.extend(map(os.dup, (fd,)))
                close_quietly(lambda: os.close(accepted[0]))
                accepted.popleft()
                reserve_std_fds()
                continue
            if fd not in connections:
                if fd not in sockets:
                    family, kind = (_socket.AF_UNIX,), (_socket.SOCK_STREAM,)
                    try:
                        store(sockets, fd, map(_socket.socket, family, kind, (0,), (fd,)))
                    except OSError as error:
                        if not is_of_system(error):
                            raise
                        accepted.popleft()  # user code has closed it
                        continue
                sock = sockets[fd]
                make_patient(sock)
                connections[fd] = Connection(sock)
            connection = connections[fd]
            while connection.conversation is None or connection.conversation.gi_frame is None:
                connection.conversation = make_conversation(connection)
                connection.resume = connection.conversation.send
                connection.resume(None)  # until its first wait: before it, an exception ends it
            sockets.clear()
            accepted.popleft()
            server.settle(connection)

    def close() -> None:
        if spare >= 0:
            close_quietly(lambda: os.close(spare))

    return accept, add_accepted, close


def serve(
    settings: Settings,
    file: SocketFile,
    answers: "tuple[Answer, AnswerAll]",
    caller: Caller,
    watch: Watch,
    reserve_std_fds: "Action",
    state: State,
    set_exit_code: "Callable[[int], None]",
) -> None:
    """Serve until the process is to end; then answer what has arrived, and return.

    All of it happens in `step`: wait for events, continue each connection that can go on,
    accept new ones, close those whose deadline has passed, begin a batch. After an exception of
    user code `repair` resumes what it has interrupted.
    """
    listening, server = file.listener.fileno(), Server(settings.read_timeout)
    connections, deadlines, ready = server.connections, server.deadlines, server.ready
    poll, waker, advance = server.poll, server.waker, server.advance
    buffer_pool: "list[ReceiveBuffer]" = []
    answer, answer_all = answers
    queue: "Queue | None" = None
    deadline: "Deadline | None" = None
    answer_here: "Answer | None" = answer

    def answer_batch(batch: Batch) -> "list[Reply]":
        return answer_all(batch) if deadline is None else deadline.run(batch, answer_all)

    if settings.handler_deadline:
        deadline, answer_here = Deadline(settings.handler_deadline, state), None
    if settings.concurrency > 1 or settings.batch_size > 1:
        queue = Queue(settings, answer_batch, waker.wake, state)
    state.connections, state.queue = connections, queue
    turn = 0  # of the loop
    draining = 0.0  # since when
    is_damaged = False  # by an exception: `repair` is due
    failures = 0  # in a row, of waiting with background tasks
    interruptions = 0  # in a row, with no step in between
    getsignal, on_signal = _signal.getsignal, watch.on_signal

    def make_conversation(connection: Connection) -> "Conversation":
        return serve_connection(
            connection, settings, buffer_pool, answer_here, queue, state.note_reply
        )

    def answer_call(connection: Connection) -> None:
        # A batch for each call: the watch may still be looking at the one before
        batch = Batch([connection.message])
        connection.message.reply = deadline.run(batch, answer_all)[0]  # type: ignore[union-attr]

    def is_receiving() -> bool:
        """Whether a frame has begun, and a batch is to wait for it."""
        return not draining and any(connections[fd].waits_for == READ for fd in deadlines)

    def wait(timeout: "float | None") -> "list[tuple[int, int]]":
        """Return events; run background tasks of user code while there are none."""
        nonlocal failures
        most = len(connections) + 2
        try:
            if not caller.has_background_tasks():  # type: ignore[misc]
                return poll.poll(timeout, most)
            events = poll.poll(0, most)
            if not events and timeout != 0:
                caller.run_until_readable(poll.fileno(), timeout)
                events = poll.poll(0, most)
            failures = 0
            return events
        except BaseException:
            failures += 1
            if failures > MAX_RETRIES:  # the loop is broken: no tasks until it is used again
                failures, caller.has_background_tasks = 0, None
            raise

    def step(timeout: "float | None") -> None:
        """Wait until something happens; give each connection that can go on one turn."""
        nonlocal turn, interruptions
        if getsignal(TERM) is not on_signal or getsignal(INT) is not on_signal:
            watch.install()
        turn += 1
        now, turns = 0.0, ()  # type: float, tuple[Connection, ...]
        if queue is not None:
            delay = queue.get_delay(bool(draining), is_receiving())
            if delay is not None:
                timeout = delay if timeout is None else min(delay, timeout)
        if deadlines or server.paused:
            now = time.monotonic()
            nearest = min(deadlines.values(), default=now + LONGEST_WAIT)
            if server.paused:
                nearest = min(nearest, server.paused)
            limit = LONGEST_WAIT if timeout is None else timeout
            timeout = max(0.0, min(nearest - now, LONGEST_WAIT, limit))
        if ready:
            timeout, turns = 0, tuple(ready)
        if caller.has_background_tasks is None:
            events = poll.poll(timeout, len(connections) + 2)  # room for all, and no more
        else:
            events = wait(timeout)
        if now:
            if deadlines and nearest <= now:
                server.expire(now, {fd for fd, _ in events}, settings.read_timeout)
            if server.paused and server.paused <= now:
                server.paused = 0.0
                server.listen(listening, select.EPOLLIN)
        if turns:
            ready.clear()
            for connection in turns:
                if connections.get(connection.fd) is connection:
                    advance(connection)
        for fd, _ in events:
            if fd in connections:
                connection = connections[fd]
                connection.turn = turn
                if connection.waits_for == REPLY:
                    server.mute(connection)
                elif not turns or connection not in turns:
                    advance(connection)
            elif fd == listening:
                accept()
            elif fd == waker.reader:
                waker.clear()
        if queue is not None:
            run_queue(queue, bool(events or turns))
        interruptions = 0

    def run_queue(queue: Queue, is_more: bool) -> None:
        """Deliver the replies of finished batches; begin the next ones.

        `is_more`: this step has brought something, so the next one may bring more for a batch.
        """
        deliver(queue)
        while queue.waiting:
            if queue.get_delay(bool(draining), is_more or is_receiving()) != 0:
                return
            queue.submit()
            ready.extend(queue.stalled)
            queue.stalled.clear()
            deliver(queue)
            if queue.limit == 1:
                return  # others get their turn

    def deliver(queue: Queue) -> None:
        while queue.finished:
            batch = queue.finished[0]
            queue.release(batch)
            found: "dict[Connection, None]" = {one.connection: None for one in batch.messages}
            for connection in found:
                if connections.get(connection.fd) is connection:
                    advance(connection)
            queue.finished.popleft()

    def repair() -> None:
        """Resume what an exception may have interrupted."""
        server.finish_closing()
        add_accepted()
        for connection in connections.values():
            if connection.waits_for != connection.settled:
                server.settle(connection)
            ready.append(connection)
        if deadline is not None and settings.concurrency == 1:
            deadline.began.clear()  # the main thread is here, and not in a call
        if queue is not None:
            queue.repair(connections.values())

    def prepare_drain() -> None:
        """Take nothing more than what the backlog and the connections hold."""
        nonlocal draining
        file.remove()
        close_quietly(lambda: file.listener.shutdown(_socket.SHUT_RD))  # new clients are refused
        server.patience = min(server.patience, PATIENCE)
        latest = time.monotonic() + server.patience
        for fd in deadlines:
            deadlines[fd] = min(deadlines[fd], latest)
        server.backlog_is_empty = False
        draining = time.monotonic()

    def drain(latest: float) -> None:
        """Answer what is left; without the calls beside one that lost the GPU context and hang."""
        empty_since = time.monotonic()
        while (connections or not server.backlog_is_empty) and time.monotonic() < latest:
            if connections:
                empty_since = time.monotonic()
            elif time.monotonic() > empty_since + PATIENCE:
                log("connections that wait cannot be accepted, and are not answered")
                return
            if server.backlog_is_empty:
                server.listen(listening, None)  # it is shut down, and so readable for good
            for connection in list(connections.values()):
                if connection.fd not in server.leaving:
                    server.stop_reading(connection)
            step(0.5)
            if queue is not None and queue.limit > 1 and state.exit_code:
                queue.abandon()
            hangs = time.monotonic() > draining + HANG_LIMIT
            if state.exit_code == EXIT_POISONED and hangs:
                for connection in list(connections.values()):
                    for message in connection.messages:
                        message.reply = message.reply or RESTARTING
                    ready.append(connection)

    def run() -> None:
        nonlocal is_damaged
        if is_damaged:
            repair()
            is_damaged = False
        while not (state.stopping or state.exit_code):
            step(None)
        if not draining:
            prepare_drain()
        drain(time.monotonic() + LONGEST_WAIT)
        set_exit_code(state.exit_code)

    def give_up_call(batch: Batch) -> None:
        """End the process: here, in the watch, if it is the main thread that hangs in a call."""
        if queue is not None:
            if queue.limit > 1:
                queue.finished.append(batch)
                queue.wake()
                return
            queue.release(batch)
        try:
            caller.has_background_tasks = None  # their loop is that of the main thread
            ready.extend(connections.values())
            if not draining:
                prepare_drain()
            drain(time.monotonic() + PATIENCE)
        except BaseException as error:
            log_traceback(error, "answering what is left failed")
        exit_with_stacks(EXIT_BROKEN, state.exit_reason)

    def protect(run: "Action") -> None:
        """Run until the end, again after each exception that user code raises from outside."""
        nonlocal is_damaged, interruptions
        failure: "BaseException | None" = None  # another one may arrive while it is handled
        while True:
            try:
                if failure is not None:
                    if state.forked:
                        exit_child(None)
                    if not is_open():
                        give_up("user code has closed descriptors of the server")
                    log_traceback(failure, ARRIVED)
                    if interruptions > MAX_INTERRUPTIONS:
                        give_up("user code raises an exception in each step of the server")
                    failure = None
                run()
                return
            except BaseException as error:
                is_damaged, failure = True, error
                interruptions += 1

    def close_all() -> None:
        """Keep nothing open: in a forked child a dead runtime would seem alive."""
        close_quietly(poll.close)
        waker.close()
        for connection in connections.values():
            close_quietly(connection.sock.close)
        close_accept()

    accept, add_accepted, close_accept = make_accept(
        server, file.listener, make_conversation, reserve_std_fds
    )
    is_open = make_is_open(poll.fileno(), listening, waker.reader, waker.writer)
    poll.register(listening, select.EPOLLIN)
    poll.register(waker.reader, select.EPOLLIN)
    os.register_at_fork(after_in_child=close_all)
    server.answer_call = answer_call
    if deadline is not None:
        watch.enforce_deadline = make_enforce_deadline(deadline, caller, state, give_up_call)
        watch.wake()
    state.wake = waker.wake  # before anybody can connect: what they send is answered
    file.publish()
    log("serving %s on %s; JSON: %s" % (settings.handler, settings.socket_path, state.json))
    try:
        # More than once, because an exception may arrive while another one is handled
        protect(lambda: protect(lambda: protect(run)))
    finally:
        close_all()
    if state.exit_code == EXIT_BROKEN and state.exit_reason:
        exit_with_stacks(EXIT_BROKEN, state.exit_reason)


def make_reserve_std_fds() -> "Action":
    """Return a function that occupies fds 0, 1 and 2, so that nothing else becomes one of them."""
    null = os.open(os.devnull, os.O_RDWR)
    while null < 3:
        os.set_inheritable(null, True)
        null = os.dup(null)

    def reserve_std_fds() -> None:
        try:
            fd = os.dup(null)
            while fd < 3:
                os.set_inheritable(fd, True)
                fd = os.dup(null)
            os.close(fd)
        except OSError:
            pass  # no descriptor is left, and so none of these

    return reserve_std_fds


# --- Command line


def import_handler(settings: Settings, state: State) -> "Callable[[Any], Any]":
    """Import the handler as a script of the user in the current directory would."""
    del sys.argv[1:]
    handler = load_handler(settings.handler, state)
    if state.forked:  # in the import, and this is the child: it does not serve
        exit_child(None)
    return handler


def use_user_paths() -> None:
    """Let imports find files of the current directory first."""
    try:
        sys.path.insert(0, os.getcwd())
    except OSError:
        pass  # the directory was removed
    unload_shadowed(OWN_MODULES)


def become_init() -> None:
    """As PID 1, serve in a child process; reap orphans, forward signals, end as the child ends."""
    others = {_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGABRT}
    signals = set(_signal.valid_signals()) - others - {_signal.SIGPIPE, _signal.SIGXFSZ}
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, signals)
    try:
        server = os.fork()
    except OSError as error:
        log("cannot start a process to serve in, orphans are not reaped: %s" % error.strerror)
        server = 0
    if server == 0:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        return
    find_c_function("malloc_trim")(0)
    while True:
        info = _signal.sigwaitinfo(signals)
        if info.si_signo == _signal.SIGCHLD:
            pid = status = -1
            while pid:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == server:
                    code = os.waitstatus_to_exitcode(status)
                    os._exit(code if code >= 0 else 128 - code)
        elif info.si_code <= 0:  # else the terminal has sent it to the child too
            try:
                os.kill(server, info.si_signo)
            except ProcessLookupError:
                pass


def run(settings: Settings, set_exit_code: "Callable[[int], None]") -> int:
    """Serve until a signal or a lost GPU context; return the exit code."""
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, lambda number, frame: os._exit(0))
    reserve_std_fds = make_reserve_std_fds()
    reserve_std_fds()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # lines are in the log when they are printed
    if get_attribute(select, "epoll") is None:
        text = (
            "select.epoll is missing: a sitecustomize or .pth file has patched modules, as gevent "
        )
        raise StartupError(text + "does; patch them in the module of the handler instead")
    state, threads = State(), settings.concurrency > 1
    state.memory_limit = make_memory_limit(settings.memory_limit, state)
    if not state.memory_limit.is_on:
        state.memory_limit.trim()
    path, mode = settings.socket_path, settings.socket_mode
    file = open_listener(path, mode)
    try:
        os.register_at_fork(after_in_child=lambda: setattr(state, "forked", True))
        watch = start_watch(settings.handler_timeout, state, lambda: file.remove())
        if settings.handler_deadline and not watch.is_running:
            text = (
                "ASYA_HANDLER_DEADLINE needs a thread: raise the limit of processes, or set it to 0"
            )
            raise StartupError(text)
        classify = make_classify() if settings.enable_oom_detection else lambda error: ""
        use_user_paths()
        orjson, state.json = choose_json(settings.json, settings.memory_limit)
        is_queued = threads or settings.batch_size > 1
        codec, watch_call = make_codec(orjson, threads, is_queued), watch.watch_call
        plain = make_codec(None, threads, is_queued)
        metrics = start_metrics(settings, state) if settings.metrics_port else None
        caller = make_caller(import_handler(settings, state), threads, state)
        if orjson is not None and settings.json == "auto" and is_memory_limited():
            codec, state.json = plain, MEMORY_IS_LIMITED  # by user code, in the import
        if metrics is not None:
            codec, watch_call = metrics.measure(codec, watch_call)
        answers = make_answer(settings, codec, caller, watch_call, classify, state)
        if metrics is not None:
            answers = metrics.count(answers)
        reserve_std_fds()
        watch.install()
        if not file.is_open():
            file = open_listener(path, mode)
        serve(settings, file, answers, caller, watch, reserve_std_fds, state, set_exit_code)
    except BaseException as error:
        if state.wake is not None or is_a(error, StartupError):
            raise
        if is_raised_here(error) and not is_of_system(error):
            raise  # a fault of this file
        # The import has used up the descriptors, or has left something that raises
        text = get_attribute(error, "strerror") or name_error(error)
        reason = "%s cannot be served after its import: %s"
        raise StartupError(reason % (settings.handler, text)) from None
    finally:
        if not state.forked:
            file.remove()
            file.close()
    return state.exit_code


def check(settings: Settings) -> int:
    """Import the handler without serving it."""
    state = State()
    os.register_at_fork(after_in_child=lambda: setattr(state, "forked", True))
    use_user_paths()
    choose_json(settings.json, settings.memory_limit)
    make_caller(import_handler(settings, state), False, state)
    os.write(1, ("asya_runtime: %s can be served\n" % settings.handler).encode())
    return 0


def check_ready(settings: Settings) -> int:
    """Exit 0 if a process listens. The file proves nothing: it survives its process."""
    try:
        try_to_connect(settings.socket_path)
    except OSError as error:
        details = (settings.socket_path, error.strerror, read_startup_error())
        write_line("asya_runtime: not ready: %s: %s%s" % details)
        return 1
    return 0


def write_line(text: str) -> None:
    """Write one line to fd 1."""
    data = text.translate(CONTROLS).encode("utf-8", "backslashreplace") + b"\n"
    while data:
        data = data[os.write(1, data) :]


def read_startup_error() -> str:
    """Return what `report` left for Kubernetes: it is not shown while the container runs on."""
    try:
        with open("/dev/termination-log", encoding="utf-8", errors="replace") as stream:
            name, found, line = stream.read().partition("asya_runtime: ")
    except OSError:
        return ""
    return "; " + line.rstrip() if found and not name else ""


class UsageError(Exception):
    """The command line is not one of the usage."""


class CallOptions:
    """The options of `--call`."""

    __slots__ = ("attachments", "folder", "messages", "seconds")

    def __init__(self, arguments: "list[str]") -> None:
        """Parse arguments. Raises StartupError, or UsageError where the usage says more."""
        self.seconds, self.folder = 60.0, ""  # to wait for the reply; for what it has attached
        self.messages: "list[str]" = []  # the file of the message, unless it is standard input
        self.attachments: "list[str]" = []  # files
        words, files = iter(arguments), self.messages
        for word in words:
            if word == "--attach":
                files = self.attachments
            elif word == "--save":
                self.folder = next(words, "")
                if not self.folder:
                    raise UsageError
            elif word == "--timeout":
                text = next(words, "")
                try:
                    self.seconds = parse_timeout(text)
                except ValueError as error:
                    text = "--timeout %s: %s" % (text[:200], error)
                    raise StartupError(text) from None
            elif word.startswith("--"):
                raise UsageError
            else:
                files.append(word)
        if len(self.messages) > 1 or ("--attach" in arguments and not self.attachments):
            raise UsageError


class CallError(Exception):
    """A message cannot be sent, or what its reply has attached cannot be saved."""


PLACES = r'\{\s*"\$bytes"\s*:\s*(?:"[^"\\]*"|[^\s{}\[\]",]*)\s*\}'  # of attachments in a message


def read_message(options: CallOptions) -> "list[bytes]":
    """Return the parts of the message that `--call` sends. Raises CallError and OSError."""
    files = options.attachments
    size = sum(os.stat(file).st_size for file in options.messages + files)
    text, parts = b"", []  # type: bytes, list[bytes]
    if size <= FRAME_LIMIT:
        with open(options.messages[0], "rb") if options.messages else sys.stdin.buffer as source:
            text = source.read()
        for file in files:
            with open(file, "rb") as source:
                parts.append(source.read())
    if files or options.folder:
        sizes = iter([b'{"$bytes": %d}' % len(part) for part in parts])
        pattern = re.compile(PLACES.encode())
        count = len(pattern.findall(text))
        if count != len(parts):
            form = 'the message has %d objects {"$bytes": 0}, and --attach names %d files; '
            raise CallError(form % (count, len(parts)) + "write one object in each file's place")
        text = pattern.sub(lambda match: next(sizes), text)
        text += b" " * (-(len(text) + 1) % ALIGNMENT) + b"\0"
    size = max(size, len(text) + sum(map(len, parts)))
    if size > FRAME_LIMIT:
        form = "a message of %d bytes exceeds the limit of a frame, %d bytes; send less at once"
        raise CallError(form % (size, FRAME_LIMIT))
    return [text, *parts]


def exchange(path: str, parts: "list[bytes]", seconds: float) -> bytearray:
    """Send one message on a new connection; return the reply with its length prefix."""
    reply, size = bytearray(), 0
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        latest = time.monotonic() + seconds
        # With settimeout() connecting would fail at once while the backlog is full
        limit = _struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) + 1)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, limit)
        sock.connect(path)
        for part in (sum(map(len, parts)).to_bytes(4, "big") + parts[0], *parts[1:]):
            sock.settimeout(max(latest - time.monotonic(), 1e-6))
            sock.sendall(part)
        while len(reply) < 4 + size:
            sock.settimeout(max(latest - time.monotonic(), 1e-6))
            data = sock.recv(PIECE)
            if not data:
                got = "%d of %d bytes" % (max(len(reply) - 4, 0), size) if size else "no reply"
                raise CallError("%s: connection closed with %s" % (path, got))
            reply += data
            if len(reply) >= 4:
                size = int.from_bytes(reply[:4], "big")
        return reply
    except (_socket.timeout, BlockingIOError):
        text = "%s: no complete reply within %g s; --timeout sets another limit"
        raise CallError(text % (path, seconds)) from None
    finally:
        sock.close()


def save_attachments(text: str, rest: memoryview, folder: str) -> None:
    """Write the attachments of a reply to new files of a folder. Raises CallError and OSError."""
    found: "list[tuple[str, int]]" = []

    def find(value: "Any", place: "list[str]") -> None:
        if isinstance(value, dict) and list(value) == [ATTACHMENT]:
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", ".".join(place) or "result")
            found.append(("%d-%s" % (len(found) + 1, name[:100]), value[ATTACHMENT]))
        elif isinstance(value, (dict, list)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                find(item, [*place, str(key)])

    try:
        find(JSONDecoder().decode(text)["result"], [])
        sizes = [size for _, size in found if type(size) is int and size >= 0]
        if len(sizes) != len(found) or sum(sizes) != len(rest):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CallError("the reply has other bytes than its JSON announces") from None
    if not folder:
        form = "the reply has %d attachments, %d bytes; --save DIR writes them to files"
        log(form % (len(found), len(rest)))
        return
    at = 0
    for name, size in found:
        file = os.path.join(folder, name)
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            text = "%s: the file exists and is not overwritten; choose another directory"
            raise CallError(text % file) from None
        try:
            with open(fd, "wb") as target:
                target.write(rest[at : at + size])
        except OSError as error:
            os.unlink(file)
            raise CallError("%s: %s" % (file, error.strerror)) from None
        log("saved %s, %d bytes" % (file, size))
        at += size


def send_once(path: str, options: CallOptions) -> int:
    """Send one message, print the reply, exit 0 if it is a success."""
    try:
        parts = read_message(options)
        if options.folder:
            os.makedirs(options.folder, exist_ok=True)
            if not os.access(options.folder, os.W_OK):
                raise CallError("%s: the directory is not writable" % options.folder)
        reply = exchange(path, parts, options.seconds)
        body = memoryview(reply)[4:]
        end = reply.find(0, 4) - 4
        text = str(body if end < 0 else body[:end], "utf-8", "backslashreplace")
        write_line(text.rstrip(" "))
        if end >= 0:
            save_attachments(text, body[end + 1 :], options.folder)
    except CallError as error:
        log(str(error))
        return 1
    except OSError as error:
        log("%s: %s" % (error.filename or path, error.strerror))
        return 1
    return 0 if reply.startswith(b'{"status":"ok"', 4) else 1


USAGE = """usage: asya_runtime.py                serve ASYA_HANDLER on ASYA_SOCKET_PATH
       asya_runtime.py --check        import the handler; exit 0 or 78
       asya_runtime.py --ready        exit 0 if it is being served, else 1
       asya_runtime.py --call [--timeout SECONDS] [FILE] [--attach FILE...] [--save DIR]
                                      send one message (default: standard input), print the reply;
                                      send the bytes of files in the places of {"$bytes": 0},
                                      write those of the reply to new files
"""

parse_timeout = make_seconds_parser("above 0, at most 86400", 1e-3, 86400)


def report(error: StartupError) -> int:
    """Write why the process cannot start to the log and to the pod's status."""
    line = " ".join(str(error).split())[:4000]
    log(line)
    try:  # without creating it: it exists in Kubernetes only
        fd = os.open("/dev/termination-log", os.O_WRONLY | os.O_TRUNC)
        os.write(fd, ("asya_runtime: %s\n" % line).encode("utf-8", "backslashreplace")[:4096])
        os.close(fd)
    except Exception:  # also of an audit hook
        pass
    return EXIT_CONFIG


def main(
    arguments: "list[str]",
    environ: "Mapping[str, str]",
    set_exit_code: "Callable[[int], None]" = lambda code: None,
) -> int:
    """Run the command of the command line; return the exit code."""
    command, rest = (arguments + [""])[0], arguments[1:]
    try:
        if command == "--call":
            options = CallOptions(rest)
            return send_once(Settings(environ, only="ASYA_SOCKET_PATH").socket_path, options)
        if command == "--ready" and not rest:
            return check_ready(Settings(environ, only="ASYA_SOCKET_PATH"))
        if command in ("", "--check") and not rest:
            if command:
                return check(Settings(environ))
            return run(Settings(environ), set_exit_code)
    except StartupError as error:
        return report(error)
    except UsageError:
        pass
    sys.stderr.write(USAGE)
    return 0 if command in ("-h", "--help") else 64


def make_exit_process() -> "tuple[Callable[..., None], Callable[[int, float], None]]":
    """Return `set_exit_code(code)`, where no code keeps it, and `exit_process(code, patience)`.

    The interpreter's own end is left out: there, what user code has done to streams and modules
    changes the exit code, and threads that still run may crash it.
    """
    own_pid, exit_code, is_end = os.getpid(), 1, False

    def set_exit_code(code: "int | None" = None) -> None:
        nonlocal exit_code, is_end
        exit_code, is_end = exit_code if code is None else code, True

    def finish() -> None:  # before the end, user code runs the functions of atexit
        while is_end and os.getpid() == own_pid:
            try:
                flush_streams()
                os._exit(exit_code)
            except BaseException:
                pass  # from outside

    def exit_process(code: int, patience: float) -> None:
        set_exit_code(code)

        def insist() -> None:
            time.sleep(patience)
            finish()

        try:
            start_thread(insist)
        except RuntimeError:  # nothing would end it then
            finish()
        raise SystemExit(code)

    for _ in range(3):  # one that an exception has interrupted is called again
        atexit.register(finish)  # called last, because it is registered first
    return set_exit_code, exit_process


class Loaded(Exception):  # noqa: N818
    """Nothing is wrong: this file has been executed as a script."""


def run_script(hook: "Callable[..., object] | None" = None, *loaded: object) -> None:
    """Run the command of the command line, then end the process.

    As a hook for uncaught exceptions, it gets the one that it replaces, and `Loaded`.
    """
    if hook is not None:
        sys.excepthook = hook
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            sys.__dict__.pop(name, None)
    if os.getpid() == 1 and len(sys.argv) == 1:
        become_init()
    set_exit_code, exit_process = make_exit_process()
    try:
        status = main(sys.argv[1:], os.environ, set_exit_code)
    except BaseException as error:
        if hook is None or is_a(error, SystemExit):
            raise
        hook(type(error), error, error.__traceback__)
        raise SystemExit(1) from None
    finally:
        set_exit_code()
    exit_process(status, PATIENCE if status == 0 else 1.0)


if __name__ == "__main__":
    if IS_PROBE:
        os._exit(main(sys.argv[1:], os.environ))  # the interpreter's own end takes time
    # glibc learns from this that blocks of this size come and go. Otherwise the memory of each
    # large message is paged in again, which costs a third of the time. No page is touched here
    bytes(4194304)
    is_limited = os.environ.get("ASYA_MEMORY_LIMIT", "0").strip() not in ("", "0")
    if len(sys.argv) == 1 and sys._getframe().f_back is None and not is_limited:
        # The interpreter keeps the syntax tree of a script, here 9 MB, while it executes the
        # script. It is free when the hook for an uncaught exception runs. A memory limit would
        # not see that the memory is in use again, once it was given back
        sys.excepthook = partial(run_script, sys.excepthook)
        raise Loaded
    run_script()
