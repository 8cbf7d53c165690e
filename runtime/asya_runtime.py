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
Modules are imported where they are needed: `--ready` is a probe and has to be cheap.
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
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from socket import socket as Socket  # noqa: N812
    from typing import Any, Union

    Bytes = Union[bytes, bytearray, memoryview]
    # A message on its way: a list with its bytes, so that whoever takes them frees them.
    Parcel = list[Bytes]
    Answer = Callable[[Parcel], bytes]
    Wait = Union[int, Parcel]

EXIT_REFUSED = 78  # EX_CONFIG: the settings or the handler are wrong; said in one line
EXIT_POISONED = 70  # EX_SOFTWARE: the GPU context is lost; only a new process helps

# --------------------------------------------------------------------------------------
# Settings: one table, read once
# --------------------------------------------------------------------------------------


class Refused(Exception):  # noqa: N818
    """The process cannot start; the text is the one line that says why and what to do."""


def _handler(text: str) -> str:
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError("must be module.path.function or module.Class.method")
    return text


def _path(text: str) -> str:
    if not os.path.isabs(text) or text.endswith("/"):
        raise ValueError("must be the absolute path of a file")
    if len(os.fsencode(text)) > 107:
        raise ValueError("must be at most 107 bytes long, the kernel's limit for sockets")
    return text


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in ("true", "1", "yes", "false", "0", "no"):
        raise ValueError("must be true, 1, yes, false, 0 or no")
    return word in ("true", "1", "yes")


def _number(low: int, high: int) -> "Callable[[str], int]":
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text[:20]) <= high:
            raise ValueError("must be a whole number from %d to %d" % (low, high))
        return int(text)

    return parse


def _seconds(zero: bool) -> "Callable[[str], float]":
    def parse(text: str) -> float:
        try:
            value = float(text) if "_" not in text else -1.0
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf") or (value == 0 and not zero):
            raise ValueError("must be a number of seconds, %s 0" % ("at least" if zero else "above"))
        return value

    return parse


def _mode(text: str) -> int:
    if not text or set(text) - set("01234567") or int(text, 8) > 0o777:
        raise ValueError("must be octal, 0 to 0777")
    return int(text, 8)


def _json(text: str) -> str:
    if text not in ("stdlib", "orjson", "auto"):
        raise ValueError("must be stdlib, orjson or auto")
    return text


# variable, default, parser; the attribute of Settings is the name without ASYA_ in lower case
SETTINGS: "tuple[tuple[str, str, Callable[[str], object]], ...]" = (
    ("ASYA_HANDLER", "", _handler),
    ("ASYA_SOCKET_PATH", "/tmp/sockets/app.sock", _path),  # noqa: S108
    ("ASYA_INCLUDE_METADATA", "false", _boolean),
    ("ASYA_CHUNK_SIZE", "4096", _number(1, 16777216)),
    ("ASYA_HANDLER_TIMEOUT", "0", _seconds(zero=True)),
    ("ASYA_ENABLE_OOM_DETECTION", "true", _boolean),
    ("ASYA_CUDA_CLEANUP_ON_OOM", "true", _boolean),
    ("ASYA_SOCKET_MODE", "0660", _mode),
    ("ASYA_CONCURRENCY", "1", _number(1, 1024)),
    ("ASYA_MAX_MESSAGE_SIZE", "4294967295", _number(1, 4294967295)),
    ("ASYA_READ_TIMEOUT", "60", _seconds(zero=False)),
    ("ASYA_JSON", "stdlib", _json),
)


class Settings:
    """What the environment says, validated."""

    handler: str
    socket_path: str
    include_metadata: bool
    chunk_size: int
    handler_timeout: float
    enable_oom_detection: bool
    cuda_cleanup_on_oom: bool
    socket_mode: int
    concurrency: int
    max_message_size: int
    read_timeout: float
    json: str

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


# --------------------------------------------------------------------------------------
# Replies
# --------------------------------------------------------------------------------------

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
# Ready before memory is gone: the replies that need nothing to be built.
OUT_OF_MEMORY = (
    b'{"status":"error","error":"oom_error","message":"out of memory while replying",'
    b'"type":"MemoryError","severity":"recoverable","retry_after":30}'
)
UNSPEAKABLE = (
    b'{"status":"error","error":"processing_error",'
    b'"message":"the exception of the handler cannot be described","severity":"fatal"}'
)


def error_reply(
    code: str, message: str, kind: str = "", severity: str = "", retry_after: object = None
) -> bytes:
    import json

    fields: "dict[str, object]" = {"status": "error", "error": code}
    fields["message"] = message[:MESSAGE_LIMIT]
    if kind:
        fields["type"] = kind
    fields["severity"] = severity or CODES[code][0]
    if retry_after is None and fields["severity"] == CODES[code][0]:
        retry_after = CODES[code][1]
    if retry_after is not None:
        fields["retry_after"] = retry_after
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def describe(code: str, error: BaseException) -> bytes:
    """Turn an exception into a reply; its own `severity` and `retry_after` win when valid."""
    try:
        try:
            message = str(error)
        except MemoryError:
            raise
        except BaseException:  # a __str__ may do anything
            message = ""
        kind = type(error).__name__
        severity = attribute(error, "severity")
        retry_after = attribute(error, "retry_after")
        if not isinstance(severity, str) or severity not in ("recoverable", "fatal"):
            severity = ""
        if type(retry_after) not in (int, float) or not 0 <= retry_after <= sys.float_info.max:
            retry_after = None
        return error_reply(code, message or kind, kind, severity, retry_after)
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException:
        return UNSPEAKABLE


def attribute(thing: object, name: str) -> "Any":
    try:
        return getattr(thing, name, None)
    except Exception:  # a property of somebody's class
        return None


# --------------------------------------------------------------------------------------
# JSON
# --------------------------------------------------------------------------------------


def make_codec(choice: str) -> "tuple[Callable[[Bytes], object], Callable[[object], bytes]]":
    """Give `decode(bytes)` and `encode(result)`, which makes the reply of a good result."""
    import json

    def constant(word: str) -> object:
        raise ValueError("%s is not JSON" % word)

    def integer(digits: str) -> int:  # early 3.9 and 3.10: quadratic time in the digits
        if len(digits) > 4300:
            raise ValueError("integer of %d digits" % len(digits))
        return int(digits)

    limited = hasattr(sys, "set_int_max_str_digits")
    read = json.JSONDecoder(parse_constant=constant, parse_int=None if limited else integer).decode
    write = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def decode(body: "Bytes") -> object:
        return read(str(body, "utf-8"))

    def encode(result: object) -> bytes:
        return write({"status": "ok", "result": result}).encode("ascii")

    if sys.version_info < (3, 12):  # later ones bound the C stack by themselves
        decode, encode = shallow(decode), shallow(encode)
    if choice == "stdlib":
        return decode, encode
    try:
        import orjson
    except ImportError:
        if choice == "auto":
            return decode, encode
        raise Refused("ASYA_JSON=orjson: this image has no orjson; auto would do without") from None
    option = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS
    option |= orjson.OPT_PASSTHROUGH_DATETIME

    def encode_fast(result: object) -> bytes:
        try:
            reply: bytes = orjson.dumps({"status": "ok", "result": result}, None, option)
        except (TypeError, ValueError):
            return encode(result)  # what orjson cannot, or the standard library's complaint
        # NaN becomes null in orjson: the standard library looks whether one was there
        return encode(result) if b"null" in reply else reply

    return orjson.loads, encode_fast


def shallow(function: "Callable[[Any], Any]") -> "Callable[[Any], Any]":
    """Bound recursion in C, which follows a limit that user code may have set sky-high."""

    def call(argument: object) -> object:
        limit = sys.getrecursionlimit()
        if limit <= 5000:
            return function(argument)
        sys.setrecursionlimit(5000)
        try:
            return function(argument)
        finally:
            sys.setrecursionlimit(limit)

    return call


def find_unencodable(result: object) -> str:
    """Name the first value that is no JSON: `result.items[3].score: nan`."""
    todo: "list[tuple[str, object, tuple[int, ...]]]" = [("result", result, ())]
    while todo:
        path, value, parents = todo.pop()
        if isinstance(value, float) and (value != value or value in (1e999, -1e999)):
            return "%s: %r" % (path, value)
        if value is None or isinstance(value, (str, int, float)):
            continue
        if id(value) in parents:
            return "%s: contains itself" % path[:200]
        if len(parents) > 500:
            return "%s...: nested too deeply" % path[:200]
        parents = parents + (id(value),)
        if isinstance(value, (list, tuple)):
            items = [("%s[%d]" % (path, i), item, parents) for i, item in enumerate(value)]
        elif isinstance(value, dict):
            for key in value:
                if key is not None and not isinstance(key, (str, int, float)):
                    return "%s: key of type %s" % (path, type(key).__name__)
            items = [("%s.%s" % (path, key), item, parents) for key, item in value.items()]
        else:
            name = type(value).__name__
            hint = "; is the handler meant to be `async def`?" if name == "coroutine" else ""
            return "%s: %s%s" % (path, name, hint)
        todo.extend(reversed(items))
    return ""


# --------------------------------------------------------------------------------------
# Memory errors: recognised by name and text, never by importing a framework
# --------------------------------------------------------------------------------------

# The process is of no use any more: every later GPU call fails as well.
STICKY = r"""
    cuda\ error:\ (device-side\ assert|an\ illegal\ memory\ access|unspecified\ launch|misaligned\ addr
        |an\ illegal\ instruction|uncorrectable\ ecc|unknown\ error|invalid\ program\ counter)
  | (an\ illegal\ memory\ access|an\ illegal\ instruction)\ was\ encountered
  | device-side\ assert\ triggered | unspecified\ launch\ failure | uncorrectable\ ecc\ error\ encountered
  | cudaerror(illegaladdress|assert|launchfailure|misalignedaddress|illegalinstruction|eccuncorrectable)
  | cuda_error_(illegal_address|assert|launch_failed|misaligned_address|ecc_uncorrectable)
  | (cublas|cudnn)_status_execution_failed | ncclunhandledcudaerror
  | cannot\ re-initialize\ cuda\ in\ forked\ subprocess
"""
# GPU memory is gone. "CUDA" or "memory" alone means nothing.
GPU = r"""
    (cuda|hip|xpu|mps\ backend)\ out\ of\ memory
  | (cuda|hip)(\ driver)?\ error:\ out\ of\ memory | cuda\ failure\ 2:\ out\ of\ memory
  | cuda\ failed\ with\ error\ out\ of\ memory | cumemalloc\w*\ failed:\ out\ of\ memory
  | cuda_error_out_of_memory | (cuda|hip)errormemoryallocation | hiperroroutofmemory
  | (cublas|cudnn|cusolver|cusparse|hipblas|rocblas)_status_alloc_failed
  | cublas_status_not_initialized\W+when\ calling\W+cublascreate
  | bad_alloc:\ (out_of_memory:\ )?(rmm|cuda) | out_of_memory:\ rmm
  | pt_devmem\ allocation\ failed | internal\ assert\ failed\ at\W.*cudacachingallocator
  | resource_exhausted:\ (out\ of\ memory\ while\ trying\ to|failed\ to)\ allocate
  | oom\ when\ allocating\ tensor.*device:(gpu|xpu|tpu)
  | (gpu=|cuda).*failed\ to\ allocate\ memory\ for\ requested\ buffer
  | failed\ to\ allocate\ memory\ for\ requested\ buffer.*(gpu=|cuda)
  | no\ available\ memory\ for\ the\ cache\ blocks | is\ less\ than\ desired\ gpu\ memory\ utilization
  | larger\ than\ the\ available\ kv\ cache\ memory
"""
# The host's memory is gone, said by something that is no MemoryError.
HOST = r"""
    defaultcpuallocator:\ (can't\ allocate|not\ enough)\ memory
  | resource_exhausted:\ out\ of\ memory\ allocating | oom\ when\ allocating\ tensor.*device:cpu
  | failed\ to\ allocate\ memory\ for\ requested\ buffer
  | available\ memory\ of\ \d+\ is\ smaller\ than\ requested
  | onnxruntime.*std::bad_alloc
"""
GPU_CLASSES = ("OutOfMemoryError", "MemoryError")  # of torch, cupy, pycuda
DEAD_CLASSES = ("EngineDeadError",)  # of vllm


def links(error: BaseException) -> "Iterator[BaseException]":
    """Walk an exception and what it came from, as the interpreter would print it."""
    todo, seen = [error], set()  # type: ignore[var-annotated]
    while todo and len(seen) < 1000:
        link = todo.pop()
        if not isinstance(link, BaseException) or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        group = attribute(link, "exceptions")  # ExceptionGroup, and its backport
        todo.extend(group if isinstance(group, tuple) else ())
        if not link.__suppress_context__:
            todo.append(link.__context__)
        todo.append(link.__cause__)


def make_classify() -> "Callable[[BaseException], str]":
    """Give a function that says `sticky`, `cuda_oom_error`, `oom_error` or nothing."""
    import re

    flags = re.IGNORECASE | re.VERBOSE | re.DOTALL
    sticky, gpu, host = (re.compile(text, flags).search for text in (STICKY, GPU, HOST))

    def is_kind(link: BaseException, roots: "Sequence[str]", names: "Sequence[str]") -> bool:
        return any(
            base.__name__ in names and str(base.__module__).partition(".")[0] in roots
            for base in type(link).__mro__
        )

    def classify(error: BaseException) -> str:
        verdict = ""
        for link in links(error):
            try:
                text = str(link)[:20000]
            except Exception:
                text = ""
            if sticky(text) or is_kind(link, ("vllm",), DEAD_CLASSES):
                return "sticky"
            if gpu(text) or is_kind(link, ("torch", "cupy", "pycuda"), GPU_CLASSES):
                verdict = "cuda_oom_error"  # before MemoryError: CuPy's is one
            elif not verdict and (
                isinstance(link, MemoryError)
                or (isinstance(link, OSError) and link.errno == errno.ENOMEM)
                or host(text)
            ):
                verdict = "oom_error"
        return verdict

    return classify


def release_frames(error: BaseException) -> None:
    """Let go of what the failed call's frames hold: their locals are the large tensors."""
    for link in list(links(error)) + [error]:
        trace = link.__traceback__
        while trace is not None:
            try:
                trace.tb_frame.clear()
            except RuntimeError:
                pass  # still running: ours
            trace = trace.tb_next
        link.__traceback__ = None


def empty_caches() -> None:
    """Give cached GPU memory back, of frameworks that are loaded; never initialise one."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")

    def device(name: str) -> None:
        part = getattr(torch, name, None)
        if part is not None and part.is_initialized():
            part.empty_cache()
            getattr(part, "ipc_collect", lambda: None)()

    def mps() -> None:
        if torch is not None and torch.backends.mps.is_available():
            torch.mps.empty_cache()

    def pools() -> None:
        if cupy is not None:
            cupy.get_default_memory_pool().free_all_blocks()
            cupy.get_default_pinned_memory_pool().free_all_blocks()

    for step in (lambda: device("cuda"), lambda: device("xpu"), mps, pools):
        try:
            step()
        except Exception as error:  # emptying a cache can itself run out of memory
            log("emptying a GPU cache failed: %s" % type(error).__name__)


def log_traceback(error: BaseException) -> None:
    try:
        import traceback

        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_globals is globals():
            trace = trace.tb_next  # the first frames are this file's and tell nothing
        lines = traceback.format_exception(type(error), error, trace)
        log("the handler failed\n" + "".join(lines)[-20000:].rstrip())
    except BaseException:
        log("the handler failed; its traceback cannot be shown")


# --------------------------------------------------------------------------------------
# The handler
# --------------------------------------------------------------------------------------

COROUTINE, ASYNC_GENERATOR = 0x80, 0x200  # of inspect, whose import costs 10 ms


def load_handler(name: str) -> "Callable[[Any], Any]":
    """Import `module.path.function` or `module.Class.method` (of one instance)."""
    import importlib

    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:count])
        try:
            thing = importlib.import_module(module_name)
            break
        except ModuleNotFoundError as error:
            missing = str(error.name)
            if not (module_name + ".").startswith(missing + "."):
                log_traceback(error)
                raise Refused(
                    "%s needs the module %s, which this image does not have" % (module_name, missing)
                ) from None
            if count == 1:
                raise Refused(explain_missing(name, missing)) from None
        except Refused:
            raise
        except BaseException as error:  # SystemExit of a script among them
            log_traceback(error)
            text = " ".join(str(error).split())[:300]
            raise Refused(
                "importing %s failed: %s: %s" % (module_name, type(error).__name__, text)
            ) from None
    path = module_name
    for part in parts[count:]:
        if isinstance(thing, type) and thing.__name__ == parts[-2]:
            try:
                thing = thing()
            except BaseException as error:
                log_traceback(error)
                raise Refused(
                    "%s() failed: %s: %s" % (path, type(error).__name__, str(error)[:300])
                ) from None
        if not hasattr(thing, part):
            raise Refused("%s has no %s; it has: %s" % (path, part, callables(thing)))
        thing, path = getattr(thing, part), path + "." + part
    if isinstance(thing, type):
        raise Refused("%s is a class; name its method: it has %s" % (path, callables(thing)))
    if not callable(thing):
        raise Refused("%s is no function but %s" % (path, type(thing).__name__))
    return thing  # type: ignore[no-any-return]


def callables(thing: object) -> str:
    names = [n for n in dir(thing) if not n.startswith("_") and callable(attribute(thing, n))]
    return ", ".join(names[:20]) or "nothing callable"


def explain_missing(name: str, missing: str) -> str:
    """Say where `missing` was looked for, and where something of that name is."""
    top = name.split(".")[0]
    near = []
    if missing == top:
        for root in sys.path[:20]:
            try:
                folders = [e.path for e in os.scandir(root or ".") if e.is_dir()][:200]
            except OSError:
                continue
            for folder in folders:
                if any(os.path.exists(os.path.join(folder, top + end)) for end in ("", ".py")):
                    near.append(folder)
    hint = "; %s has it: add that to PYTHONPATH" % near[0] if near else ""
    return "no module %s for ASYA_HANDLER=%s in sys.path %s%s" % (missing, name, sys.path, hint)


def make_call(
    handler: "Callable[[Any], Any]", threads: bool
) -> "Callable[[dict[str, object]], object]":
    """Give a plain function that calls the handler: sync, async or generator."""
    function = handler
    while type(function).__name__ == "partial":
        function = attribute(function, "func")
    code = attribute(function, "__code__") or attribute(
        attribute(type(function), "__call__"), "__code__"
    )
    flags = getattr(code, "co_flags", 0)
    generator = type(_ for _ in ())

    def call(request: "dict[str, object]") -> object:
        result = handler(request)
        return list(result) if type(result) is generator else result

    if not flags & (COROUTINE | ASYNC_GENERATOR):
        return call

    import asyncio

    async def outcome(request: "dict[str, object]") -> "tuple[object, BaseException | None]":
        try:
            if flags & ASYNC_GENERATOR:
                return [item async for item in handler(request)], None
            return await handler(request), None
        except BaseException as error:  # noqa: BLE001 - a SystemExit would end the loop
            return None, error

    if sys.version_info < (3, 10):  # locks made at import belong to the current loop there
        loop = asyncio.get_event_loop()
    else:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)

    def call_here(request: "dict[str, object]") -> object:
        task = loop.create_task(outcome(request))
        del request
        while not task.done():
            try:
                loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
                log("a background task raised %s" % type(error).__name__)
        return settle(task.result())

    def call_there(request: "dict[str, object]") -> object:
        return settle(asyncio.run_coroutine_threadsafe(outcome(request), loop).result())

    def settle(pair: "tuple[object, BaseException | None]") -> object:
        result, error = pair
        if error is not None:
            raise error
        return result

    if not threads:
        return call_here
    import threading

    def run_loop() -> None:
        while True:
            try:
                loop.run_forever()
            except BaseException as error:  # a background task may raise SystemExit
                log("a background task raised %s" % type(error).__name__)

    threading.Thread(target=run_loop, name="asya-asyncio", daemon=True).start()
    return call_there


def make_answer(
    settings: Settings, call: "Callable[[dict[str, object]], object]", poison: "Callable[[], None]"
) -> "Answer":
    """Give the function that turns a message into its reply. It does not raise."""
    import gc

    decode, encode = make_codec(settings.json)
    classify = make_classify() if settings.enable_oom_detection else lambda error: ""
    metadata = settings.include_metadata

    def understand(parcel: "Parcel") -> "dict[str, object]":
        message = decode(parcel.pop())
        if not isinstance(message, dict):
            raise ValueError("the message is no JSON object")
        if not isinstance(message.get("payload"), dict):
            raise ValueError('the message has no object "payload"')
        return message if metadata else {"payload": message["payload"]}

    def judge(error: BaseException, path: str = "") -> "tuple[str, bytes]":
        """Build the reply first, then let go of everything the failure holds."""
        kind = ""
        try:
            kind = classify(error)
            code = kind if kind in CODES else "processing_error"
            reply = describe(code, error)
            if path and code == "processing_error":
                reply = error_reply(code, "%s (%s)" % (path, error), type(error).__name__)
            if path or kind in CODES:
                log("%s: %s" % (code, type(error).__name__))
            else:
                log_traceback(error)
        except MemoryError:
            reply = OUT_OF_MEMORY
        except BaseException:
            reply = UNSPEAKABLE
        release_frames(error)
        return kind, reply

    def recover(kind: str) -> None:
        if kind == "sticky":
            poison()
        elif kind:
            gc.collect()
            if settings.cuda_cleanup_on_oom:
                empty_caches()

    def answer(parcel: "Parcel") -> bytes:
        kind, request, result = "", None, None
        try:
            request = understand(parcel)
        except (ValueError, RecursionError) as error:
            reply = describe("invalid_json", error)
        except BaseException as error:
            kind, reply = judge(error)
        if request is not None:
            try:
                result = call(request)
            except BaseException as error:  # SystemExit and KeyboardInterrupt are answered too
                kind, reply = judge(error)
                request = None
            if request is not None:
                request = None
                try:
                    reply = encode(result)
                    if len(reply) > FRAME_LIMIT:
                        reply = error_reply("processing_error", "the result exceeds a frame")
                except BaseException as error:
                    path = "" if isinstance(error, MemoryError) else complaint(result)
                    kind, reply = judge(error, path)
        result = None
        if kind:
            recover(kind)
        return reply

    def complaint(result: object) -> str:
        try:
            return "the result is no JSON: " + (find_unencodable(result) or "result")
        except BaseException:
            return "the result is no JSON"

    return answer


# --------------------------------------------------------------------------------------
# The socket file: there if and only if the handler serves
# --------------------------------------------------------------------------------------


def open_listener(
    path: str, mode: int
) -> "tuple[Socket, Callable[[], None], Callable[[], None], int]":
    """Listen under a temporary name. Give listener, publish(), remove() and the directory."""
    import fcntl
    import socket
    import stat

    folder, name = os.path.split(path)
    temporary = ".asya-" + os.urandom(4).hex()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
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

    def inode(entry: str) -> "tuple[int, int] | None":
        try:
            found = os.stat(entry, dir_fd=directory, follow_symlinks=False)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def is_stale(entry: str) -> bool:
        """Tell whether `entry` is a socket that nobody listens to; refused if not ours to take."""
        kind = os.stat(entry, dir_fd=directory, follow_symlinks=False).st_mode
        if not stat.S_ISSOCK(kind):
            raise Refused("%s exists and is no socket; it stays" % os.path.join(folder, entry))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(address(entry))
            except ConnectionRefusedError:
                return True
            except OSError:
                pass  # EAGAIN: somebody lives there whose backlog is full
        return False

    def make_room() -> None:
        try:
            if not is_stale(name):
                raise Refused("another process serves %s" % path)
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass

    def locked(action: "Callable[[], None]") -> None:
        """Run under the directory's lock: check and change must not be torn apart."""
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            action()
        except OSError as error:
            raise Refused("the socket %s: %s" % (path, error.strerror or error)) from None
        finally:
            fcntl.flock(directory, fcntl.LOCK_UN)

    def claim() -> None:
        make_room()
        for entry in os.listdir(directory):
            if entry.startswith(".asya-"):  # of a start that was killed, or is under way
                try:
                    if is_stale(entry):
                        os.unlink(entry, dir_fd=directory)
                except (OSError, Refused):
                    pass  # not ours
        listener.bind(address(temporary))
        os.chmod(temporary, mode, dir_fd=directory)
        listener.listen(1024)
        listener.setblocking(False)

    def publish() -> None:
        def rename() -> None:
            make_room()
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)

        locked(rename)

    def remove() -> None:
        for entry in (temporary, name):
            if inode(entry) == ours:
                try:
                    os.unlink(entry, dir_fd=directory)
                except OSError:
                    pass  # gone with its directory

    locked(claim)
    ours = inode(temporary)
    return listener, publish, remove, directory


# --------------------------------------------------------------------------------------
# Signals and the watch over slow calls: one thread
# --------------------------------------------------------------------------------------


def start_watch(
    limit: float, abandon: "Callable[[], None]"
) -> "tuple[Callable[[], None], Callable[[Callable[[], None]], None], dict[object, float], Callable[[], None]]":
    """Start the thread that hears SIGTERM even while the main thread is deep in C code.

    Gives `install()`, to be called again after the handler's import, which may have replaced
    what it installs; `ready(stop)`: from now on SIGTERM calls `stop` (before: `abandon`, exit
    0); the dict of running calls, {key: start}, warned about after `limit` seconds; and
    `forget()` for forked children.
    """
    import select
    import signal
    import threading

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    running: "dict[object, float]" = {}
    stops: "list[Callable[[], None]]" = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    heard = {"thread": 0, "main": 0}

    def hear(where: str, number: int) -> None:
        heard[where] += 1
        if heard[where] > 1:
            os._exit(128 + number)
        if not stops:
            abandon()
            os._exit(0)
        stops[0]()

    def install() -> None:
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in numbers:
            # Both ways, because user code may take the wake-up fd for itself
            signal.signal(number, lambda number, frame: hear("main", number))

    def forget() -> None:
        signal.set_wakeup_fd(-1)
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        os.close(reader)
        os.close(writer)

    def watch() -> None:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        warned: "dict[object, float]" = {}
        while True:
            now = time.monotonic()
            calls = dict(running)
            warned = {key: warned[key] for key in warned if key in calls}
            for key, started in calls.items():
                if now - started >= limit and key not in warned:
                    warned[key] = started
                    log("the handler is still running after %.3g s" % (now - started))
            due = [started + limit for key, started in calls.items() if key not in warned]
            pause = max(0.0, min(due, default=now + limit) - now) * 1000 + 1 if limit else None
            if poll.poll(pause):
                for number in os.read(reader, 512):
                    if number in numbers:
                        hear("thread", number)

    def ready(stop: "Callable[[], None]") -> None:
        stops.append(stop)

    install()
    threading.Thread(target=watch, name="asya-watch", daemon=True).start()
    return install, ready, running, forget


# --------------------------------------------------------------------------------------
# Connections
# --------------------------------------------------------------------------------------

IDLE, NOW, READ, WRITE = 0, -1, 1, 4  # what a conversation waits for; 1, 4: EPOLLIN, EPOLLOUT
GROWTH = 65536  # first size of a buffer for what is larger than ASYA_CHUNK_SIZE
KEPT = 4194304  # a buffer up to this size is used again
STEP = 16777216  # and grows by at most this much


class Broken(Exception):  # noqa: N818
    """The stream ended or stalled inside a frame: where the next one begins is unknown."""


def converse(
    sock: "Socket", settings: Settings, spare: "list[bytearray]"
) -> "Generator[Wait, Any, None]":
    """Serve one connection from accept to close.

    Yields what it waits for, or a parcel with a message, for which it is sent the reply.
    `spare` holds one receive buffer shared by all: zeroing a new one costs more than filling it.
    """
    chunk, limit, recv, send = settings.chunk_size, settings.max_message_size, sock.recv, sock.send
    held = b""  # has arrived and is not used yet
    yield IDLE
    try:
        while True:
            while len(held) < 4:
                try:
                    data = recv(chunk)
                except BlockingIOError:
                    yield READ if held else IDLE
                    continue
                if not data:
                    if held:
                        raise Broken("the connection ended inside a length prefix")
                    return
                held = held + data if held else data
                if len(held) < 4:
                    yield READ
            size = int.from_bytes(held[:4], "big")
            buffer = None
            if size > limit:
                reason = "the message of %d bytes is over the limit of %d" % (size, limit)
                held = yield from discard(sock, held[4:], size)
                reply = error_reply("connection_error", reason)
            elif len(held) >= 4 + size:
                parcel: "Parcel" = [held[4 : 4 + size]]
                held = held[4 + size :]
                reply = yield parcel
            else:
                buffer = spare.pop() if spare else bytearray(GROWTH)
                got = yield from fill(sock, buffer, held[4:], size)
                held = b""
                if got < size:
                    buffer = None
                    yield from discard(sock, b"", size - got)
                    reply = OUT_OF_MEMORY
                else:
                    parcel = [memoryview(buffer)[:size]]
                    if len(buffer) > KEPT:
                        buffer = None  # the parcel alone holds it, and lets go when it is parsed
                    reply = yield parcel
                    if buffer is not None and not spare:
                        spare.append(buffer)
            yield from write(sock, reply)
            del reply
            yield NOW if len(held) >= 4 else READ if held else IDLE
    except (Broken, TimeoutError) as error:
        reply = error_reply("connection_error", str(error), type(error).__name__)
        send(len(reply).to_bytes(4, "big") + reply)
    except OSError:
        pass  # the peer has gone, and nobody is left to be answered


def fill(
    sock: "Socket", buffer: bytearray, start: bytes, size: int
) -> "Generator[Wait, Any, int]":
    """Receive `size` bytes into `buffer`, which grows with what has arrived.

    Gives how many there are: fewer than `size` when memory is gone.
    """
    got = len(start)
    try:
        if got > len(buffer):
            buffer.extend(bytes(got - len(buffer)))
        buffer[:got] = start
        while True:
            with memoryview(buffer) as view:
                try:
                    count = sock.recv_into(view[got:size])
                    if not count:
                        raise Broken("the connection ended after %d of %d bytes" % (got, size))
                    got += count
                except BlockingIOError:
                    pass
            if got == size:
                return got
            if got == len(buffer):
                buffer.extend(bytes(min(got, STEP, size - got)))
            yield READ
    except MemoryError:
        buffer.clear()
        return got


def discard(sock: "Socket", start: bytes, size: int) -> "Generator[Wait, Any, bytes]":
    """Let `size` bytes pass by; give what came after them."""
    left = size - len(start)
    while left > 0:
        try:
            data = sock.recv(min(left, GROWTH))
        except BlockingIOError:
            yield READ
            continue
        if not data:
            raise Broken("the connection ended %d bytes before its frame" % left)
        left -= len(data)
        if left:
            yield READ
    return start[size:] if len(start) > size else b""


def write(sock: "Socket", reply: bytes) -> "Generator[Wait, Any, None]":
    prefix = len(reply).to_bytes(4, "big")
    small = len(reply) < GROWTH  # a large one is not copied
    for part in (prefix + reply,) if small else (prefix, reply):
        try:
            sent = sock.send(part)
        except BlockingIOError:
            sent = 0
        while sent < len(part):
            yield WRITE
            try:
                sent += sock.send(memoryview(part)[sent:])
            except BlockingIOError:
                pass


def serve(
    settings: Settings,
    listener: "Socket",
    answer: "Answer",
    ready: "Callable[[Callable[[], None]], None]",
    remove: "Callable[[], None]",
    poisoned: "list[bool]",
    forget: "Callable[[], None]",
) -> None:
    """Move bytes until told to stop; then answer what has arrived, and return."""
    import collections
    import resource
    import select

    poll = select.epoll()
    waker, alarm = os.pipe()
    os.set_blocking(alarm, False)
    os.set_blocking(waker, False)
    # connection by fd, the longest unused first: [socket, generator.send, what it waits for]
    talks: "dict[int, list[Any]]" = {}
    deadlines: "dict[int, float]" = {}  # of those inside a frame
    turns: "list[int]" = []  # of those that have the next message already
    finished: "collections.deque[tuple[int, bytes]]" = collections.deque()
    spare: "list[bytearray]" = []
    stopping: "list[bool]" = []
    forked: "list[bool]" = []
    busy: "set[int]" = set()
    most = min(1000, max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))

    def wake() -> None:
        try:
            os.write(alarm, b"!")
        except BlockingIOError:
            pass  # full of wake-ups already

    def stop() -> None:
        stopping.append(True)
        wake()

    def after_fork() -> None:
        """In a child of user code: hold nothing open, or a dead runtime looks alive."""
        forked.append(True)
        forget()
        listener.close()
        poll.close()
        os.close(waker)
        os.close(alarm)
        for talk in talks.values():
            talk[0].close()

    def leave_child() -> None:
        if forked:  # user code forked and came back here: this is not the server
            os._exit(0)

    def put_aside(fd: int, parcel: "Parcel") -> None:
        poll.unregister(fd)
        busy.add(fd)
        submit(fd, parcel)

    def advance(fd: int, talk: "list[Any]", value: object) -> None:
        """Continue a conversation until it has to wait."""
        try:
            wants = talk[1](value)
            while type(wants) is list:
                talks[fd] = talks.pop(fd)
                if submit is not None:
                    put_aside(fd, wants)
                    return
                reply = answer(wants)
                leave_child()
                wants = talk[1](reply)
                del reply
        except StopIteration:
            close(fd)
            return
        if wants == NOW:
            turns.append(fd)
            wants = IDLE
        if wants == IDLE:
            if deadlines:
                deadlines.pop(fd, None)
        else:
            deadlines[fd] = time.monotonic() + settings.read_timeout
        event = wants or READ
        if event != talk[2]:
            poll.modify(fd, event)
            talk[2] = event

    def close(fd: int) -> None:
        talk = talks.pop(fd)
        deadlines.pop(fd, None)
        talk[0].close()

    def accept() -> bool:
        if len(talks) >= most or stopping:
            make_space()
        try:
            sock = listener.accept()[0]
        except BlockingIOError:
            return False
        except OSError as error:
            log("accept: %s" % error.strerror)
            make_space()
            time.sleep(0.01)
            return False
        sock = above_standard(sock)
        sock.setblocking(False)  # always said: user code may have set a default time limit
        talk = [sock, converse(sock, settings, spare).send, READ]
        fd = sock.fileno()
        talks[fd] = talk
        poll.register(fd, READ)
        advance(fd, talk, None)
        return True

    def make_space() -> None:
        """Close the connection that has been quiet longest."""
        if len(talks) >= most:
            close(next(fd for fd in talks if fd not in busy))

    def expire(ready_fds: "set[int]", now: float) -> None:
        """End those that stalled inside a frame: late already before the poll that found nothing."""
        for fd in [fd for fd in deadlines if deadlines[fd] <= now and fd not in ready_fds]:
            try:
                talks[fd][1].__self__.throw(TimeoutError("stalled inside a frame"))
            except (StopIteration, OSError):
                pass
            close(fd)

    def turn(wait: "float | None") -> None:
        """Wait for events and serve each that came, once."""
        now = time.monotonic()
        if turns:
            wait = 0
        elif deadlines:
            nearest = max(0.0, min(deadlines.values()) - now)
            wait = nearest if wait is None else min(wait, nearest)
        events = poll.poll(wait)
        if deadlines:
            expire({fd for fd, _ in events}, now)
        again, turns[:] = turns[:], []
        for fd, _ in events:
            talk = talks.get(fd)
            if talk is not None:
                if fd not in again:
                    advance(fd, talk, None)
            elif fd == waker:
                os.read(waker, 4096)
            elif fd == listening:
                accept()
        for fd in again:
            if fd in talks:
                advance(fd, talks[fd], None)
        while finished:
            fd, reply = finished.popleft()
            busy.discard(fd)
            poll.register(fd, talks[fd][2])
            advance(fd, talks[fd], reply)

    def drain() -> None:
        """Answer what the backlog and the connections hold; take nothing more."""
        remove()
        while accept():
            pass
        poll.unregister(listening)
        listener.close()
        for talk in talks.values():
            try:
                talk[0].shutdown(0)  # SHUT_RD: peers get EPIPE, what they sent can still be read
            except OSError:
                pass
        patience = time.monotonic() + 5
        while talks and (busy or time.monotonic() < patience):
            before = time.monotonic()
            turn(0.2)
            if busy or turns or time.monotonic() - before > 0.3:
                patience = time.monotonic() + 5  # a handler was at work

    listening = listener.fileno()
    poll.register(listening, READ)
    poll.register(waker, READ)
    os.register_at_fork(after_in_child=after_fork)
    submit = None
    if settings.concurrency > 1:
        submit = start_workers(
            settings.concurrency,
            answer,
            lambda fd, reply: (finished.append((fd, reply)), leave_child(), wake())[0],
        )
    ready(stop)
    while not stopping and not poisoned:
        turn(None)
    drain()


def start_workers(
    count: int, answer: "Answer", finish: "Callable[[int, bytes], None]"
) -> "Callable[[int, Parcel], None]":
    import queue
    import threading

    jobs: "queue.SimpleQueue[tuple[int, Parcel]]" = queue.SimpleQueue()
    idle = threading.Semaphore(0)
    threads: "list[threading.Thread]" = []

    def work() -> None:
        while True:
            fd, parcel = jobs.get()
            finish(fd, answer(parcel))
            idle.release()

    def submit(fd: int, parcel: "Parcel") -> None:
        jobs.put((fd, parcel))
        if not idle.acquire(blocking=False) and len(threads) < count:
            size = threading.stack_size(16777216)  # deep JSON needs it; only what is used costs
            thread = threading.Thread(target=work, name="asya-%d" % len(threads), daemon=True)
            thread.start()
            threading.stack_size(size)
            threads.append(thread)

    return submit


def above_standard(sock: "Socket") -> "Socket":
    """Move a connection away from fds 0 to 2, which user code has closed, and occupy those."""
    if sock.fileno() > 2:
        return sock
    import fcntl
    import socket

    moved = socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))
    sock.close()
    occupy_standard()
    return moved


def occupy_standard() -> None:
    fd = os.open(os.devnull, os.O_RDWR)
    while fd < 3:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR)
    os.close(fd)


# --------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------


def prepare_user_code(settings: Settings) -> "Callable[[Any], Any]":
    """Import the handler as if the user's own script did, in the current directory."""
    try:
        sys.path.insert(0, os.getcwd())
    except OSError:
        pass  # the directory was removed
    del sys.argv[1:]
    return load_handler(settings.handler)


def run(settings: Settings) -> int:
    occupy_standard()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
    listener, publish, remove, directory = open_listener(settings.socket_path, settings.socket_mode)
    install, ready, running, forget = start_watch(settings.handler_timeout, remove)
    try:
        poisoned: "list[bool]" = []
        call = make_call(prepare_user_code(settings), settings.concurrency > 1)
        if settings.handler_timeout:
            call = timed(call, running)

        def poison() -> None:
            log("the GPU context of this process is lost: it ends after this reply")
            poisoned.append(True)

        answer = make_answer(settings, call, poison)
        occupy_standard()
        install()
        publish()
        log("serving %s on %s" % (settings.handler, settings.socket_path))
        serve(settings, listener, answer, ready, remove, poisoned, forget)
    finally:
        remove()
        os.close(directory)
    return EXIT_POISONED if poisoned else 0


def timed(
    call: "Callable[[dict[str, object]], object]", running: "dict[object, float]"
) -> "Callable[[dict[str, object]], object]":
    def measured(request: "dict[str, object]") -> object:
        key = object()
        running[key] = time.monotonic()
        try:
            return call(request)
        finally:
            del running[key]

    return measured


def check(settings: Settings) -> int:
    prepare_user_code(settings)
    make_codec(settings.json)
    print("asya_runtime: %s can be served" % settings.handler)
    return 0


def is_ready(settings: Settings) -> int:
    from _socket import AF_UNIX, SOCK_STREAM, socket  # socket.py costs 10 ms more

    probe = socket(AF_UNIX, SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(settings.socket_path)
    except BlockingIOError:
        pass  # alive, and very busy
    except OSError as error:
        print("asya_runtime: not ready: %s: %s" % (settings.socket_path, error.strerror))
        return 1
    return 0


def call_once(settings: Settings, files: "list[str]") -> int:
    """Send one message, print the reply."""
    import socket

    try:
        with open(files[0], "rb") if files else sys.stdin.buffer as source:
            body = source.read()
    except OSError as error:
        raise Refused("%s: %s" % (error.filename, error.strerror)) from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(settings.socket_path)
            sock.sendall(len(body).to_bytes(4, "big") + body)
            with sock.makefile("rb") as stream:
                size = int.from_bytes(stream.read(4), "big")
                reply = stream.read(size)
        except OSError as error:
            log("no reply from %s: %s" % (settings.socket_path, error.strerror))
            return 1
    if not reply or len(reply) < size:
        log("no reply from %s: the connection ended" % settings.socket_path)
        return 1
    sys.stdout.buffer.write(reply + b"\n")
    sys.stdout.flush()
    return 0 if reply.startswith(b'{"status":"ok"') else 1


USAGE = """usage: asya_runtime.py               serve ASYA_HANDLER on ASYA_SOCKET_PATH
       asya_runtime.py --check       import the handler, exit 0 or 78
       asya_runtime.py --ready       exit 0 if it serves, else 1
       asya_runtime.py --call [FILE] send one message (default: standard input), print the reply
"""


def refuse(reason: str) -> int:
    """Say why nothing starts: in the log, and where Kubernetes shows it in the pod's status."""
    line = " ".join(reason.split())
    log(line)
    try:  # not created: outside Kubernetes there is none
        fd = os.open("/dev/termination-log", os.O_WRONLY | os.O_TRUNC)
        os.write(fd, ("asya_runtime: %s\n" % line).encode("utf-8", "backslashreplace")[:4096])
        os.close(fd)
    except OSError:
        pass
    return EXIT_REFUSED


def main(arguments: "list[str]", environ: "Mapping[str, str]") -> int:
    command, rest = (arguments + [""])[0], arguments[1:]
    try:
        if command in ("--ready", "--call"):
            settings = Settings(environ, only="ASYA_SOCKET_PATH")
            return is_ready(settings) if command == "--ready" else call_once(settings, rest)
        if command not in ("", "--check") or rest:
            sys.stderr.write(USAGE)
            return 0 if command in ("-h", "--help") else 2
        settings = Settings(environ)
        return check(settings) if command else run(settings)
    except Refused as error:
        return refuse(str(error))


def leave(code: int) -> None:
    """End the process, also when threads of user code do not: they get 5 seconds."""
    import threading

    def insist() -> None:
        time.sleep(5)
        os._exit(code)

    threading.Thread(target=insist, daemon=True).start()
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1:] == ["--ready"]:
        sys.exit(main(sys.argv[1:], os.environ))
    leave(main(sys.argv[1:], os.environ))
