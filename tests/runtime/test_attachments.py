"""Bytes beside JSON: `JSON \\0 bytes` in both directions, in every mode of the runtime."""

from __future__ import annotations

import array
import dataclasses
import enum
import json
import mmap
import random
import re
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import RUNTIME, Client, Process, Start, frame, taken
from .served import Like, error, ok, stopped

BEFORE = "in the JSON before the zero byte: "
BAD = "result is not JSON-serializable at "
NOT_READ = "; clients get bytes if they send a zero byte after the JSON of the request; "
LIBRARIES = pytest.mark.parametrize("library", ["stdlib", "orjson"])


def body_of(message: object, *, align: bool = True, **more: Any) -> bytes:
    """Give the body of a message in which bytes are attachments."""
    pieces: list[bytes] = []

    def attach(value: object) -> object:
        assert isinstance(value, bytes)
        pieces.append(value)
        return {"$bytes": len(value)}

    text = json.dumps(message, default=attach, **more).encode()
    text += b" " * (-(len(text) + 1) % 16 if align else 0)
    return text + b"\0" + b"".join(pieces)


def value_of(body: bytes) -> Any:
    """Read a reply, with the attachments in their places."""
    text, zero, rest = body.partition(b"\0")
    at = 0

    def read(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal at
        if not zero or [key for key, _ in pairs] != ["$bytes"]:
            return dict(pairs)
        at += pairs[0][1]
        return rest[at - pairs[0][1] : at]

    value = json.loads(text, object_pairs_hook=read)
    assert at == len(rest)
    if zero:
        assert rest or b'"$bytes":0' in text
        assert (len(text) + 1) % 16 == 0
    return value


def reply(client: Client) -> Any:
    return value_of(client.exactly(int.from_bytes(client.exactly(4), "big")))


def call(client: Client, payload: object, **more: Any) -> Any:
    client.send(frame(body_of({"payload": payload, **more})))
    return reply(client)


ADDRESS = """
    import ctypes, os, signal, sys
    class Buffer(ctypes.Structure):
        _fields_ = [("buf", ctypes.c_void_p), ("obj", ctypes.py_object), ("len", ctypes.c_ssize_t),
                    ("itemsize", ctypes.c_ssize_t), ("readonly", ctypes.c_int),
                    ("ndim", ctypes.c_int), ("format", ctypes.c_char_p), ("shape", ctypes.c_void_p),
                    ("strides", ctypes.c_void_p), ("suboffsets", ctypes.c_void_p),
                    ("internal", ctypes.c_void_p)]
    def address(view):
        found = Buffer()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(found), 0)
        place = found.buf
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))
        return place
"""

# --- Every mode ------------------------------------------------------------------------

SOURCE = (
    ADDRESS
    + """
    def predict(message):
        data = message["payload"]["data"]
        if data == "text": return b"bytes"
        assert type(data) is memoryview and data.readonly and data.format == "B"
        aligned = address(data) % 16 if len(data) else 0
        return {"aligned": aligned, "data": data, "copies": [bytes(data), bytearray(data)]}
    async def later(message): return predict(message)
    def generate(message): yield predict(message)
    def batch(messages): return [predict(message) for message in messages]
    def whole(message): return [message["id"], bytes(message["payload"]["data"])]
    """
)
MODES: dict[str, tuple[str, dict[str, str]]] = {
    "stdlib": ("predict", {"ASYA_JSON": "stdlib"}),
    "orjson": ("predict", {"ASYA_JSON": "orjson"}),
    "generator": ("generate", {}),
    "async": ("later", {}),
    "deadline": ("predict", {"ASYA_HANDLER_DEADLINE": "60"}),
    "workers": ("predict", {"ASYA_CONCURRENCY": "3"}),
    "async-workers": ("later", {"ASYA_CONCURRENCY": "3"}),
    "batches": ("batch", {"ASYA_BATCH_SIZE": "4"}),
    "batches-workers": ("batch", {"ASYA_BATCH_SIZE": "4", "ASYA_CONCURRENCY": "2"}),
    "memory-limit": ("predict", {"ASYA_MEMORY_LIMIT": str(1 << 30)}),
    "metrics": ("predict", {"ASYA_METRICS_PORT": "0"}),
    "one-byte-a-read": ("predict", {"ASYA_CHUNK_SIZE": "1"}),
    "a-large-read": ("predict", {"ASYA_CHUNK_SIZE": "1000000"}),
}
SIZES = [0, 1, 15, 4000, 4096, 60_000, 65_536, 70_000, 300_000, 2_000_000, 6_000_000, 3]


@pytest.mark.parametrize(("handler", "environ"), MODES.values(), ids=MODES)
def test_bytes_go_both_ways_in_every_mode(
    start: Start, handler: str, environ: dict[str, str]
) -> None:
    both_ways(start, handler, sys.executable, environ)


def test_bytes_go_both_ways_everywhere(start: Start, python: str) -> None:
    both_ways(start, "predict", python, {})


def both_ways(start: Start, handler: str, python: str, environ: dict[str, str]) -> None:
    process = start(SOURCE, f"app.{handler}", python=python, **environ)
    client, chance = process.client(), random.Random(5)
    for size in SIZES if environ.get("ASYA_CHUNK_SIZE") != "1" else SIZES[:6]:
        data = chance.randbytes(size)
        expected: Any = {"aligned": 0, "data": data, "copies": [data, data]}
        if handler == "generate":
            expected = [expected]
        assert call(client, {"data": data}) == ok(expected), size
        plain = client.call({"payload": {"data": "text"}})  # each message has its own form
        place = "result[0]" if handler == "generate" else "result"
        assert plain["message"].startswith(f"{BAD}{place}: bytes{NOT_READ}")
    stopped(process)


def test_metadata_may_have_attachments(start: Start) -> None:
    process = start(SOURCE, "app.whole", ASYA_INCLUDE_METADATA="true")
    assert call(process.client(), {"data": b"abc"}, id=b"xy") == ok([b"xy", b"abc"])


def test_metadata_that_the_handler_does_not_get_may_have_attachments(start: Start) -> None:
    client = start(SOURCE, "app.predict").client()
    data = {"aligned": 0, "data": b"b" * 16, "copies": [b"b" * 16] * 2}
    message = {"id": [b"a" * 16], "payload": {"data": b"b" * 16}}
    client.send(frame(body_of(message)))
    assert reply(client) == ok(data)


def test_the_limit_counts_all_bytes_of_a_message(start: Start) -> None:
    body = body_of({"payload": {"data": b"x" * 100}})
    client = start(SOURCE, "app.predict", ASYA_MAX_MESSAGE_SIZE=str(len(body))).client()
    assert call(client, {"data": b"x" * 100})["status"] == "ok"
    client.send(frame(body_of({"payload": {"data": b"x" * 116}})))
    text = f"message of {len(body) + 16} bytes exceeds the limit of {len(body)} bytes"
    assert reply(client) == Like(error="connection_error", message=text)
    assert call(client, {"data": b"x" * 100})["status"] == "ok"


def test_attachments_over_the_frame_limit_are_a_processing_error(
    start: Start, folder: Path
) -> None:
    """The limit is a constant: a copy with a small one saves 4 GiB."""
    source = RUNTIME.read_text().replace("FRAME_LIMIT = 4294967295", "FRAME_LIMIT = 100000")
    (folder / "runtime.py").write_text(source)
    client = start(argv=[sys.executable, str(folder / "runtime.py")]).client()
    message = "reply of 100064 bytes exceeds the frame limit"
    assert call(client, {"a": b"x" * 100_000}) == error("OverflowError", message)
    assert call(client, {"a": b"x" * 1000}) == ok({"a": b"x" * 1000})


def test_what_has_arrived_is_answered_at_the_end(start: Start) -> None:
    source = """
        import time
        def echo(message):
            time.sleep(0.3)
            return message["payload"]
    """
    process = start(source)
    clients = [process.client() for _ in range(3)]
    for client in clients:
        client.send(frame(body_of({"payload": {"a": b"x" * 100_000}})))
    process.signal()
    for client in clients:
        assert reply(client) == ok({"a": b"x" * 100_000})
        assert client.at_end()
    assert process.wait() == 0


# --- What a request may be -------------------------------------------------------------

DEEP = b'{"payload":{"a":' + b"[" * 300 + b'{"$bytes":2}' + b"]" * 300 + b"}}\0xy"
VALID: dict[str, tuple[bytes, Any]] = {
    "nothing-behind": (b'{"a":1}\0', {"a": 1}),
    "nothing-behind-colons": (
        b'{"a:":"::\\u003a","b": [0.5, {"c":":"}]}\0',
        {"a:": ":::", "b": [0.5, {"c": ":"}]},
    ),
    "nothing-behind-a-large-number": (b'{"a":18446744073709551616}\0', {"a": 2**64}),
    "two": (b'{"a":{"$bytes":1},"b":[{"$bytes":2}]}\0xyz', {"a": b"x", "b": [b"yz"]}),
    "none-of-a-size": (b'{"a":{"$bytes":0}}\0', {"a": b""}),
    "minus-zero": (b'{"a":{"$bytes":-0}}\0', {"a": b""}),
    "an-escaped-name": (b'{"a":{"\\u0024bytes":1}}\0x', {"a": b"x"}),
    "beside-another-key": (b'{"a":{"$bytes":5,"b":1}}\0', {"a": {"$bytes": 5, "b": 1}}),
    "after-another-key": (
        b'{"a":{"b":{"$bytes":1},"$bytes":"x"}}\0\0',
        {"a": {"b": b"\0", "$bytes": "x"}},
    ),
    "white-space": (b' \r\n{"a": { "$bytes"\t: 3 } } \n\0abc', {"a": b"abc"}),
    "zero-bytes-inside": (b'{"a":{"$bytes":3}}\0\0\0\0', {"a": b"\0\0\0"}),
    "what-looks-like-more": (b'{"a":{"$bytes":12}}\0{"$bytes":9}', {"a": b'{"$bytes":9}'}),
    "an-attachment-alone": (b'{"$bytes":3}\0abc', b"abc"),
    "without-the-zero-byte": (b'{"a":{"$bytes":3}}', {"a": {"$bytes": 3}}),
    "twice-without-it": (b'{"a":1,"a":{"$bytes":3}}', {"a": {"$bytes": 3}}),
    "many": (
        b"[" + b",".join([b'{"$bytes":1}'] * 100_000) + b"]\0" + b"ab" * 50_000,
        [b"a", b"b"] * 50_000,
    ),
}
WHOLE = '{"$bytes": n}: n must be a whole number from 0'
INVALID: dict[str, tuple[bytes, str, str]] = {
    "too-few": (
        b'{"a":{"$bytes":3}}\0ab',
        "ValueError",
        '{"$bytes": n} stands for 3 bytes, but only 2 of 2 are left',
    ),
    "too-few-for-the-second": (
        b'[{"$bytes":3},{"$bytes":3}]\0abcd',
        "ValueError",
        '{"$bytes": n} stands for 3 bytes, but only 1 of 4 are left',
    ),
    "too-many": (
        b'{"a":{"$bytes":1}}\0ab',
        "ValueError",
        'objects {"$bytes": n} stand for 1 bytes, but 2 bytes follow',
    ),
    "none-announced": (
        b"{}\0\0",
        "ValueError",
        'objects {"$bytes": n} stand for 0 bytes, but 1 bytes follow',
    ),
    "4-gib-in-sum": (
        b"[" + b",".join([b'{"$bytes":1073741824}'] * 4) + b"]\0abc",
        "ValueError",
        '{"$bytes": n} stands for 1073741824 bytes, but only 3 of 3 are left',
    ),
    "beyond-all-frames": (
        b'{"$bytes":%d}\0abc' % 10**30,
        "ValueError",
        '{"$bytes": n} stands for too many bytes, but only 3 of 3 are left',
    ),
    "negative": (b'[{"$bytes":-1},{"$bytes":4}]\0abc', "ValueError", WHOLE),
    "a-float": (b'{"$bytes":3.0}\0abc', "ValueError", WHOLE),
    "an-exponent": (b'{"$bytes":3e0}\0abc', "ValueError", WHOLE),
    "true": (b'{"$bytes":true}\0a', "ValueError", WHOLE),
    "null": (b'{"$bytes":null}\0', "ValueError", WHOLE),
    "text": (b'{"$bytes":"3"}\0abc', "ValueError", WHOLE),
    "a-list": (b'{"$bytes":[3]}\0abc', "ValueError", WHOLE),
    "nested": (b'{"$bytes":{"$bytes":3}}\0abc', "ValueError", WHOLE),
    "twice": (
        b'{"a":{"$bytes":1,"$bytes":1}}\0a',
        "ValueError",
        'the key "$bytes" appears twice in an object',
    ),
    "an-ordinary-key-twice": (
        b'{"b":1,"a":[{"k":{"$bytes":1},"k":{"$bytes":1}}]}\0ab',
        "ValueError",
        'the key "k" appears twice in an object',
    ),
    "a-key-twice-with-nothing-behind": (
        b'{"a":{"k":"x:y","k":2}}\0',
        "ValueError",
        'the key "k" appears twice in an object',
    ),
    "a-key-twice-and-a-hidden-colon": (
        b'{"a":1,"a":2,"b":"\\u003a"}\0',
        "ValueError",
        'the key "a" appears twice in an object',
    ),
    "a-key-twice-before-what-is-no-json": (
        b'[{"k":1,"k":2},+1]\0',
        "ValueError",
        'the key "k" appears twice in an object',
    ),
    "a-long-key-twice": (
        b'{"%s":1,"%s":2}\0' % (b"k" * 99, b"k" * 99),
        "ValueError",
        'the key "' + "k" * 60 + '..." appears twice in an object',
    ),
    "no-json": (b"\0abc", "JSONDecodeError", "Expecting value: line 1 column 1 (char 0)"),
    "inside-a-text": (
        b'{"a":"b\0c"}',
        "JSONDecodeError",
        "Unterminated string starting at: line 1 column 6 (char 5)",
    ),
    "inside-an-object": (
        b'{"a":1,\0"b":2}',
        "JSONDecodeError",
        "Expecting property name enclosed in double quotes: line 1 column 8 (char 7)",
    ),
    "more-json": (b'{"a":1} {}\0', "JSONDecodeError", "Extra data: line 1 column 9 (char 8)"),
    "not-utf-8": (b'{"a":"\xff"}\0', "UnicodeDecodeError", ""),
    "nan": (b'{"a":NaN}\0', "ValueError", "NaN is not JSON"),
    "too-large": (b'{"a":[1e999]}\0', "ValueError", "number too large for a double"),
    "digits": (b'{"a":' + b"9" * 5000 + b"}\0", "ValueError", ""),
    "deep": (b"[" * 100_000 + b"\0", "RecursionError", ""),
}


def codec(runtime: ModuleType, library: str, *, is_queued: bool = False) -> Any:
    return runtime.make_codec(runtime.choose_json(library, 0)[0], False, is_queued)


def decoded(runtime: ModuleType, library: str, body: bytes, *, is_large: bool) -> Any:
    """Decode a message as it is received: small ones as bytes, large ones in a buffer."""
    message = runtime.Message()
    message.body = memoryview(runtime.ReceiveBuffer(body + b"\0rest"))[: len(body)]
    if not is_large:
        message.body = body
    return plain(codec(runtime, library)[0](message))


def plain(value: Any) -> Any:
    if isinstance(value, memoryview):
        assert value.readonly
        return bytes(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


@LIBRARIES
@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(("body", "value"), VALID.values(), ids=VALID)
def test_what_a_request_with_attachments_may_be(
    runtime: ModuleType, library: str, body: bytes, value: Any, is_large: bool
) -> None:
    assert decoded(runtime, library, body, is_large=is_large) == value


@LIBRARIES
@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
@pytest.mark.parametrize(("body", "kind", "text"), INVALID.values(), ids=INVALID)
def test_what_is_no_request_with_attachments(
    runtime: ModuleType, library: str, body: bytes, kind: str, text: str, is_large: bool
) -> None:
    with pytest.raises((ValueError, RecursionError)) as caught:
        decoded(runtime, library, body, is_large=is_large)
    said = str(caught.value)
    assert (type(caught.value).__name__, said[: len(text)]) == (kind, text)


def test_a_wrong_request_is_invalid_json_and_the_connection_stays(
    start: Start, python: str
) -> None:
    client = start(python=python).client()
    for body, kind, text in INVALID.values():
        client.send(frame(body))
        got = reply(client)
        assert got == error(kind, got["message"], "invalid_json"), body[:99]
        assert got["message"].startswith(BEFORE + text), body[:99]
    text = BEFORE + 'the message has no "payload" that is an object'
    for body in (b'{"payload":{"$bytes":1}}\0a', b"{}\0"):
        client.send(frame(body))
        assert reply(client) == error("ValueError", text, "invalid_json")
    assert call(client, {"a": b"x"}) == ok({"a": b"x"})
    client.send(frame(DEEP))
    assert reply(client)["status"] == "ok"
    assert client.call({"payload": {"a": 1}}) == ok({"a": 1})


# --- What a result may be --------------------------------------------------------------


class Blob(bytes):
    pass


class Mask(enum.Enum):
    ON = b"on"


@dataclasses.dataclass
class Picture:
    data: object
    label: str = "x"


class Model:
    def __init__(self, **fields: object) -> None:
        self.fields = fields

    def model_dump(self, mode: str) -> object:
        return self.fields


class Array:
    def __init__(self, items: object) -> None:
        self.items = items

    def tolist(self) -> object:
        return self.items


Pair = namedtuple("Pair", "a b")
floats = array.array("f", [1.0, 2.0, 3.0, 4.0])
released = memoryview(b"abc")
released.release()
pages = mmap.mmap(-1, 4096)

SENT: dict[str, tuple[Any, Any]] = {
    "alone": (b"abc", b"abc"),
    "empty": ([b"", bytearray()], [b"", b""]),
    "a-list": ([b"a", bytearray(b"b"), memoryview(b"c")], [b"a", b"b", b"c"]),
    "of-subclasses": (
        {"a": Blob(b"x"), "b": type("Own", (bytearray,), {})(b"y")},
        {"a": b"x", "b": b"y"},
    ),
    "a-slice": (memoryview(b"abcdef")[2:4], b"cd"),
    "of-floats": (memoryview(floats), floats.tobytes()),
    "of-two-dimensions": (
        memoryview(floats).cast("B").cast("f", (2, 2)),
        floats.tobytes(),
    ),
    "of-no-length": (memoryview(array.array("f")), b""),
    "of-pages": (memoryview(pages)[:3], b"\0\0\0"),
    "in-a-dataclass": ([Picture(b"p"), Picture([Picture(b"q")])],
                       [{"data": b"p", "label": "x"},
                        {"data": [{"data": b"q", "label": "x"}], "label": "x"}]),
    "in-other-things": (
        {"enum": Mask.ON, "pair": Pair(b"a", {"b": b"b"}), "model": Model(c=b"c"),
         "array": Array([b"d", [b"e"]]), "tuple": (b"f",)},
        {"enum": b"on", "pair": [b"a", {"b": b"b"}], "model": {"c": b"c"}, "array": [b"d", [b"e"]],
         "tuple": [b"f"]},
    ),
    "with-what-only-one-library-writes": (
        {"a": b"a", 1: [2**70, "\ud800", None, 0.5], "b": b"b"},
        {"a": b"a", "1": [2**70, "\ud800", None, 0.5], "b": b"b"},
    ),
    "deep": ([[[[[b"a"] * 3] * 3] * 3] * 3] * 3, [[[[[b"a"] * 3] * 3] * 3] * 3] * 3),
    "the-name-in-a-text": (['{"$bytes":1}', b"a"], ['{"$bytes":1}', b"a"]),
    "the-name-beside-another-key": (
        [{"$bytes": 1, "b": b"x"}, {"b": 1, "$bytes": b"y"}],
        [{"$bytes": 1, "b": b"x"}, {"b": 1, "$bytes": b"y"}],
    ),
    "large": ([b"a" * 70_000, b"", bytearray(70_000), memoryview(floats), b"b" * 70_000],
              [b"a" * 70_000, b"", bytes(70_000), floats.tobytes(), b"b" * 70_000]),
    "many-small": ([b"%d" % n for n in range(20_000)], [b"%d" % n for n in range(20_000)]),
    "none": ({"a": [1, None]}, {"a": [1, None]}),
}  # fmt: skip
LITERAL = 'an object with the single key "$bytes", which would stand for an attachment'
UNSENT: dict[str, tuple[Any, str]] = {
    "not-contiguous": (
        {"a": [memoryview(b"abcdef")[::2]]},
        "result.a[0]: memoryview; it is not C-contiguous, copy it with bytes()",
    ),
    "released": ([b"x", released], "result[1]: memoryview; it has been released"),
    "a-literal": ({"a": [b"x", {"$bytes": 1}]}, "result.a[1]: " + LITERAL),
    "a-literal-of-a-model": ([Model(**{"$bytes": b"x"})], "result[0]: " + LITERAL),
    "a-literal-of-no-number": ({"$bytes": None}, "result: " + LITERAL),
    "a-literal-around-another": ([{"$bytes": {"$bytes": 1, "b": 2}}], "result[0]: " + LITERAL),
    "nan-behind-bytes": ([b"x", float("nan")], "result[1]: nan"),
    "a-key": ({b"k": 1}, "result: key of type bytes"),
    "a-set": ([b"x", {1}], "result[1]: set"),
}


def encoded(runtime: ModuleType, library: str, value: Any, *, is_queued: bool) -> bytes:
    message = runtime.Message()
    message.result, message.reads_attachments = value, True
    built = codec(runtime, library, is_queued=is_queued)[3](message)
    if isinstance(built, bytes):
        return built
    assert len(built) > 65_536
    data, chance = bytearray(), random.Random(7)
    while len(data) < len(built):  # as sent: in parts that end anywhere
        rest = b"".join(built.get_rest(len(data)))
        data += rest[: chance.choice([1, 5, 1000, 100_000])]
        if chance.random() < 0.1:
            built.keep()
    assert built[11] == data[11]
    return bytes(data)


@LIBRARIES
@pytest.mark.parametrize("is_queued", [False, True], ids=["sent-at-once", "queued"])
@pytest.mark.parametrize(("value", "expected"), SENT.values(), ids=SENT)
def test_bytes_in_a_result_are_attachments(
    runtime: ModuleType, library: str, value: Any, expected: Any, is_queued: bool
) -> None:
    body = encoded(runtime, library, value, is_queued=is_queued)
    assert value_of(body) == ok(expected)
    assert (b"\0" in body) == (b'{"$bytes":' in body)


@LIBRARIES
@pytest.mark.parametrize(("value", "place"), UNSENT.values(), ids=UNSENT)
def test_what_is_no_attachment_is_named_by_its_place(
    runtime: ModuleType, library: str, value: Any, place: str
) -> None:
    with pytest.raises((ValueError, TypeError)):
        encoded(runtime, library, value, is_queued=False)
    assert "result" + runtime.find_unencodable(value, True) == place


@LIBRARIES
@pytest.mark.parametrize("value", [b"abc", bytearray(b"abc"), memoryview(b"abc"), Blob(b"abc")])
def test_a_client_that_sent_no_zero_byte_gets_an_error_that_says_how(
    runtime: ModuleType, library: str, value: Any
) -> None:
    message = runtime.Message()
    message.result = {"a": [value]}
    with pytest.raises(TypeError):
        codec(runtime, library)[1](message)
    name = runtime.name_class(type(value))
    assert runtime.find_unencodable(message.result) == f".a[0]: {name}{NOT_READ}"[:-2]


def test_arrays_are_sent_without_a_copy_of_their_framework(runtime: ModuleType) -> None:
    numpy = pytest.importorskip("numpy")
    for dtype in ("u1", "f2", "<f4", ">f4", "f8", "c8", "?", [("a", "i4"), ("b", "f8")]):
        for shape in ((3, 4), (0, 4), ()):
            value = numpy.zeros(shape, dtype)
            body = encoded(runtime, "stdlib", [value.data, value.tobytes()], is_queued=False)
            assert value_of(body) == ok([value.tobytes()] * 2), (dtype, shape)


EVALUATOR = """
    def predict(message):
        if "code" in message["payload"]: return eval(message["payload"]["code"])
        return message["payload"]
    def batch(messages): return [predict(message) for message in messages]
"""


@pytest.mark.parametrize(
    ("handler", "environ"),
    [("predict", {}), ("batch", {"ASYA_BATCH_SIZE": "4"})],
    ids=["one", "batches"],
)
def test_each_error_of_a_result_is_of_its_own_message(
    start: Start, handler: str, environ: dict[str, str]
) -> None:
    client = start(EVALUATOR, f"app.{handler}", **environ).client()
    literal = BAD + "result.a: " + LITERAL + "; the result looks as if it had attachments"
    name, text = "memoryview", "Object of type memoryview is not JSON serializable"
    strided = BAD + f"result[0]: {name}; it is not C-contiguous, copy it with bytes(); {text}"
    plain = BAD + "result: bytes" + NOT_READ + "Object of type bytes is not JSON serializable"
    cases: list[tuple[str, bool, object]] = [
        ("{'a': {'$bytes': 3}}", True, error("ValueError", literal)),
        ("{'a': {'$bytes': 3}}", False, ok({"a": {"$bytes": 3}})),
        ("[memoryview(b'abc')[::2]]", True, error("TypeError", strided)),
        ("b'abc'", True, ok(b"abc")),
        ("b'abc'", False, error("TypeError", plain)),
        ("[b'a', bytearray(b'b')]", True, ok([b"a", b"b"])),
        ("5", True, ok(5)),
    ]
    for code, reads, _ in cases:
        message = {"payload": {"code": code}}
        client.send(frame(body_of(message) if reads else message))
    assert [reply(client) for _ in cases] == [expected for *_, expected in cases]


def test_bytes_are_not_the_results_of_a_batch(runtime: ModuleType) -> None:
    for value in (b"ab", bytearray(b"ab"), memoryview(b"ab")):
        text = f"the handler returned {type(value).__name__} for 2 messages; "
        with pytest.raises(runtime.UnfitResults, match=text):
            runtime.list_results(value, 2)


def test_a_reply_has_a_zero_byte_only_with_attachments(start: Start) -> None:
    client = start().client()
    client.send(frame(b'{"payload":{"a":1}}\0'))
    assert client.exactly(4 + 32) == b"\x00\x00\x00\x20" + b'{"status":"ok","result":{"a":1}}'
    client.send(frame(b'{"payload":{"a":{"$bytes":0}}}\0'))
    text = b'{"status":"ok","result":{"a":{"$bytes":0}}}'
    assert client.exactly(4 + 48) == b"\0\0\0\x30" + text + b"    \0"


# --- Generated ones --------------------------------------------------------------------

names = st.text(max_size=5) | st.sampled_from(["$bytes", "a", "payload"])
values = st.recursive(
    st.binary(max_size=40)
    | st.integers(70_000, 70_002).map(bytes)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(names, inner),
    max_leaves=15,
)


def has_literal(value: Any) -> bool:
    if isinstance(value, dict):
        return list(value) == ["$bytes"] or any(map(has_literal, value.values()))
    return isinstance(value, list) and any(map(has_literal, value))


@settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(value=values, align=st.booleans(), is_large=st.booleans(), library=st.sampled_from(
    ["stdlib", "orjson"]
))  # fmt: skip
def test_whatever_is_sent_comes_back(
    runtime: ModuleType, value: Any, align: bool, is_large: bool, library: str
) -> None:
    body = body_of(value, align=align)
    if has_literal(value):
        with pytest.raises(ValueError, match=re.escape("$bytes")):
            decoded(runtime, library, body, is_large=is_large)
        assert runtime.find_unencodable(value, True).endswith(LITERAL)
        with pytest.raises(ValueError, match="looks as if it had attachments"):
            encoded(runtime, library, value, is_queued=is_large)
        return
    assert repr(decoded(runtime, library, body, is_large=is_large)) == repr(value)
    assert repr(value_of(encoded(runtime, library, value, is_queued=is_large))["result"]) == repr(
        value
    )


# --- Buffers ---------------------------------------------------------------------------

KEEPER = (
    ADDRESS
    + """
    import hashlib
    kept, places = [], []
    def digest(data): return hashlib.sha256(data).hexdigest()
    def predict(message):
        payload = message["payload"]
        if payload["do"] == "look": return [digest(one) for one in kept]
        if payload["do"] == "forget": return kept.clear()
        data = payload["data"]
        places.append(address(data))
        if payload["do"] == "keep": kept.append(data)
        if payload["do"] == "part": kept.append(memoryview(data)[100:200].cast("B"))
        if payload["do"] == "buffer": kept.append(data.obj)
        if payload["do"] == "echo": return data
        return places[-1] in places[:-1]
    """
)
MODES_OF_BUFFERS = {
    "direct": {},
    "deadline": {"ASYA_HANDLER_DEADLINE": "60"},
    "workers": {"ASYA_CONCURRENCY": "2"},
}


@pytest.mark.parametrize("environ", MODES_OF_BUFFERS.values(), ids=MODES_OF_BUFFERS)
def test_what_a_handler_keeps_stays_as_it_is(start: Start, environ: dict[str, str]) -> None:
    kept_stays(start, sys.executable, environ)


def test_what_a_handler_keeps_stays_as_it_is_everywhere(start: Start, python: str) -> None:
    kept_stays(start, python, {})


def kept_stays(start: Start, python: str, environ: dict[str, str]) -> None:
    import hashlib

    client, chance = (
        start(KEEPER, "app.predict", python=python, **environ).client(),
        random.Random(3),
    )
    digests: list[str] = []
    for number in range(30):
        data = chance.randbytes(chance.choice([10, 5000, 100_000, 1_000_000, 3_000_000]))
        do = ("keep", "drop", "part", "echo")[number % 4]
        got = call(client, {"do": do, "data": data})
        assert got["status"] == "ok"
        if do == "echo":
            assert got == ok(data)
        kept = {"keep": data, "part": data[100:200]}.get(do)
        digests += [] if kept is None else [hashlib.sha256(kept).hexdigest()]
        client.call({"payload": {"do": "look", "more": "x" * chance.choice([1, 100_000])}})
    assert call(client, {"do": "look"}) == ok(digests)


def test_the_receive_buffer_is_used_again_only_if_nothing_looks_at_it(
    start: Start, python: str
) -> None:
    process = start(KEEPER, "app.predict", python=python)
    client, data = process.client(), bytes(1_000_000)

    def is_used_again(do: str) -> bool:
        return bool(call(client, {"do": do, "data": data})["result"] is True)

    assert not is_used_again("drop")
    assert [is_used_again("drop") for _ in range(3)] == [True] * 3
    for do in ("keep", "part", "buffer"):
        assert is_used_again(do)
        assert not is_used_again("drop"), do
        assert is_used_again("drop"), do
        assert call(client, {"do": "look"})["result"][0]
    # A reply that has not been sent looks at it too
    other = process.client()
    client.send(frame(body_of({"payload": {"do": "echo", "data": b"s" * 1_000_000}})))
    taken(client)
    assert call(other, {"do": "drop", "data": b"o" * 1_000_000})["status"] == "ok"
    assert reply(client) == ok(b"s" * 1_000_000)


WRITER = """
    data, views = bytearray(3_000_000), []
    def fill(payload):
        byte = payload["n"]
        if payload["how"] == "in-place": data[:] = bytes([byte]) * 3_000_000
        else:
            data.clear()
            data.extend(bytes([byte]) * payload.get("size", 3_000_000))
    def predict(message):
        payload = message["payload"]
        fill(payload)
        if payload["as"] == "bytearray": return {"data": data, "n": payload["n"]}
        if payload["as"] == "view": return {"data": memoryview(data), "n": payload["n"]}
        return {"data": memoryview(data).toreadonly(), "n": payload["n"]}
    def batch(messages):
        results = []
        for message in messages:
            result = predict(message)
            result["data"] = bytes(result["data"]) if len(messages) > 1 else result["data"]
            results.append(result)
        return results
"""
WRITERS = {
    "direct": ("predict", {}),
    "deadline": ("predict", {"ASYA_HANDLER_DEADLINE": "60"}),
    "queue": ("batch", {"ASYA_BATCH_SIZE": "2"}),
    "metrics": ("predict", {"ASYA_MEMORY_LIMIT": str(1 << 30)}),
}


@pytest.mark.parametrize(("handler", "environ"), WRITERS.values(), ids=WRITERS)
def test_a_handler_may_write_over_what_it_has_returned(
    start: Start, handler: str, environ: dict[str, str]
) -> None:
    process = start(WRITER, f"app.{handler}", **environ)
    client = process.client()
    for number in range(3):  # replies that the socket takes at once
        payload = {"n": number, "as": "bytearray", "how": "resize", "size": 100_000}
        assert set(call(client, payload)["result"]["data"]) == {number}
    for kind in ("bytearray", "view", "readonly"):
        for how in ("in-place", "resize") if kind == "bytearray" else ("in-place",):
            clients = [process.client() for _ in range(3)]
            for number, client in enumerate(clients, 65):  # nobody reads yet
                client.send(frame(body_of({"payload": {"n": number, "as": kind, "how": how}})))
                taken(client)
            for number, client in enumerate(clients, 65):
                got = reply(client)
                assert got["status"] == "ok", got
                assert got["result"]["n"] == number
                assert set(got["result"]["data"]) == {number}


def test_a_reply_that_cannot_be_kept_for_lack_of_memory_ends_its_connection(
    start: Start, folder: Path
) -> None:
    source, copy = RUNTIME.read_text(), "self.pieces[number] = self.pieces[number].tobytes()"
    assert copy in source
    (folder / "runtime.py").write_text(source.replace(copy, "raise MemoryError  #"))
    process = start(WRITER, "app.predict", argv=[sys.executable, str(folder / "runtime.py")])
    client, other = process.client(), process.client()
    client.send(frame(body_of({"payload": {"n": 65, "as": "view", "how": "in-place"}})))
    taken(client)
    assert other.call({"payload": {}})["error"] == "processing_error"
    with pytest.raises(EOFError):
        reply(client)
    assert 1 < process.log().count("MemoryError") < 9


THREADS = """
    import threading
    own = threading.local()
    def predict(message):
        data = own.__dict__.setdefault("data", bytearray(200_000))
        data[:] = bytes([message["payload"]["n"]]) * len(data)
        return data
"""


def test_a_worker_may_write_over_what_it_has_returned(start: Start) -> None:
    """It begins the next call while the main thread sends the reply of the one before."""
    process = start(THREADS, "app.predict", ASYA_CONCURRENCY="2")
    clients = [process.client() for _ in range(8)]
    for turn in range(5):
        for number, client in enumerate(clients):
            client.send(frame(body_of({"payload": {"n": 8 * turn + number}})))
        for number, client in enumerate(clients):
            assert set(reply(client)["result"]) == {8 * turn + number}


# --- Memory ----------------------------------------------------------------------------


def peak(process: Process) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_memory_is_that_of_what_has_arrived(start: Start) -> None:
    process = start(EVALUATOR, "app.predict")
    client = process.client()
    assert call(client, {"a": b"x"}) == ok({"a": b"x"})
    idle = peak(process)
    client.send(frame(INVALID["4-gib-in-sum"][0]))
    assert reply(client)["error"] == "invalid_json"
    waiting = process.client()
    waiting.send(b"\xff\xff\xff\xff" + b'{"payload":{"a":{"$bytes":4294967000}}}\0' + bytes(9000))
    taken(waiting)
    assert peak(process) - idle < 2_000_000
    waiting.close()
    size = 64 * 1024 * 1024
    assert len(call(client, {"a": bytes(size)})["result"]["a"]) == size
    assert (peak(process) - idle) / size < 1.3
    idle = peak(process)
    many = call(client, {"a": [b"x"] * 100_000})
    assert many == ok({"a": [b"x"] * 100_000})
    assert peak(process) - idle < 120_000_000


# --- Exceptions that arrive between any two steps ---------------------------------------

LATE = """
    import opcode, sys
    held = bytearray(200_000)
    CALLS = [n for n, name in enumerate(opcode.opname) if name.startswith("CALL")]
    def arm(count):
        # An exception from outside is raised where a call in the runtime's code has returned
        left, before = count, {}
        def trace(frame, event, argument):
            nonlocal left
            frame.f_trace_opcodes = True
            if event != "opcode" or not frame.f_code.co_filename.endswith("asya_runtime.py"):
                return trace
            last = before.get(id(frame))
            before[id(frame)] = frame.f_code.co_code[frame.f_lasti]
            left -= last in CALLS
            if left == 0 and last in CALLS:
                sys.settrace(None)
                before.clear()
                raise ValueError("late")
            return trace
        frame = sys._getframe(2)
        while frame is not None:
            frame.f_trace, frame.f_trace_opcodes = trace, True
            frame = frame.f_back
        sys.settrace(trace)
    def predict(message):
        payload = message["payload"]
        sys.settrace(None)
        held[:] = bytes([payload["n"] % 256]) * len(held)
        if payload["at"]: arm(payload["at"])
        return [payload["data"], held, b"c" * 100_000]
"""


def test_an_exception_at_any_point_tears_no_reply(start: Start, python: str) -> None:
    process = start(LATE, "app.predict", python=python)
    client = process.client()

    def answered(at: int, number: int) -> bool:
        data = bytes([number % 251]) * 300_000
        got = call(client, {"at": at, "n": number, "data": data})
        if got["status"] == "ok":
            assert got["result"] == [data, bytes([number % 256]) * 200_000, b"c" * 100_000], at
        else:
            assert got == error("ValueError", got["message"], got["error"]), at
            assert got["message"].endswith("late"), at
        return bool(got["status"] == "ok")

    good = 0
    for at in range(1, 240, 3):
        good += answered(at, at)
        answered(0, at + 1)  # it may come while this one is read
        assert answered(0, at + 2), at
    assert 20 < good < 75, process.log()[-2000:]
    stopped(process)
