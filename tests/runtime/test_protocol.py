"""Frames in, frames out: DESIGN's protocol, seen from the other end of the socket."""

from __future__ import annotations

import json
import signal
import socket
import sys
import tempfile
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import RUNTIME, Process, Start, environment, eventually, frame

ECHO = {"payload": {"a": 1}}
OK = {"status": "ok", "result": {"a": 1}}


def failure(code: str, message: str, kind: str | None, **more: Any) -> dict[str, Any]:
    reply = {"status": "error", "error": code, "message": message, "severity": "fatal"} | more
    return reply | ({"type": kind} if kind else {})


def test_a_frame_is_answered_with_a_frame_of_the_result(start: Start) -> None:
    client = start().client()
    client.send(b"\x00\x00\x00\x13" + b'{"payload":{"a":1}}')
    assert client.exactly(4 + 32) == b"\x00\x00\x00\x20" + b'{"status":"ok","result":{"a":1}}'


@pytest.mark.parametrize("size", [1, 3, 4, 7, 16], ids=lambda size: f"pieces-of-{size}")
def test_a_frame_may_arrive_in_any_pieces(start: Start, size: int) -> None:
    client = start(ASYA_CHUNK_SIZE="5").client()
    data = frame(ECHO) * 3
    for i in range(0, len(data), size):
        client.send(data[i : i + size])
    assert [client.reply() for _ in range(3)] == [OK] * 3


@pytest.mark.parametrize("chunk", ["1", "3", "4", "5", "4096", "16777216"])
@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_messages_of_all_sizes_come_back_whole(start: Start, chunk: str, concurrency: str) -> None:
    process = start(ASYA_CHUNK_SIZE=chunk, ASYA_CONCURRENCY=concurrency)
    client = process.client()
    for size in (0, 1, 100, 4064, 4065, 4096, 65536, 262144, 3_000_000, 70_000, 9_000_000, 1):
        text = "ä" * size
        assert client.call({"payload": {"t": text}}) == {"status": "ok", "result": {"t": text}}


def test_pipelined_messages_are_answered_in_order(start: Start) -> None:
    client = start().client()
    client.send(b"".join(frame({"payload": {"n": n}}) for n in range(500)))
    assert [client.reply()["result"]["n"] for _ in range(500)] == list(range(500))


def test_a_connection_may_close_without_a_byte(start: Start) -> None:
    process = start()
    for _ in range(50):
        process.client().close()
    assert process.call({"a": 1}) == OK


def test_a_connection_per_message_works_as_well(start: Start) -> None:
    process = start()
    assert [process.call({"a": 1}) for _ in range(50)] == [OK] * 50


def test_a_client_that_ends_its_side_still_gets_the_reply(start: Start) -> None:
    client = start().client()
    client.send(frame(ECHO) + frame(ECHO))
    client.sock.shutdown(socket.SHUT_WR)
    assert [client.reply(), client.reply()] == [OK, OK]
    assert client.at_end()


INVALID = {
    "empty": (b"", "JSONDecodeError", "Expecting value: line 1 column 1 (char 0)"),
    "not-json": (b"{nope", "JSONDecodeError", None),
    "extra": (b'{"payload":{}} {}', "JSONDecodeError", None),
    "not-utf-8": (b'{"payload":{"a":"\xff"}}', "UnicodeDecodeError", None),
    "utf-16": ('{"payload":{}}'.encode("utf-16"), "UnicodeDecodeError", None),
    "byte-order-mark": (b'\xef\xbb\xbf{"payload":{}}', "JSONDecodeError", None),
    "nan": (b'{"payload":{"a":NaN}}', "ValueError", "NaN is not JSON"),
    "too-large": (
        b'{"payload":{"a":[1e999]}}',
        "ValueError",
        "number too large for a double at payload.a[0]",
    ),
    "infinity": (b'{"payload":{"a":-Infinity}}', "ValueError", "-Infinity is not JSON"),
    "digits": (b'{"payload":{"a":' + b"9" * 5000 + b"}}", "ValueError", None),
    "deep": (b'{"payload":{"a":' + b"[" * 10**6 + b"]" * 10**6 + b"}}", "RecursionError", None),
    "unclosed": (b"[" * 10**6, "RecursionError", None),
    "a-list": (b"[1]", "ValueError", "the message is not a JSON object"),
    "null": (b"null", "ValueError", "the message is not a JSON object"),
    "no-payload": (b'{"id":1}', "ValueError", 'the message has no "payload" that is an object'),
    "text-payload": (
        b'{"payload":"x"}',
        "ValueError",
        'the message has no "payload" that is an object',
    ),
    "null-payload": (
        b'{"payload":null}',
        "ValueError",
        'the message has no "payload" that is an object',
    ),
}


@pytest.mark.parametrize(("body", "kind", "message"), INVALID.values(), ids=INVALID)
def test_what_is_no_message_is_invalid_json_and_the_connection_stays(
    start: Start, body: bytes, kind: str, message: str | None
) -> None:
    client = start().client()
    got = client.call(body)
    assert got == failure("invalid_json", got["message"] if message is None else message, kind)
    assert client.call(ECHO) == OK


@pytest.mark.parametrize(
    ("before", "after"), [(b"\n ", b""), (b"", b"\r\n\t "), (b"\n ", b"\r\n\t ")]
)
def test_white_space_around_a_message_is_json(start: Start, before: bytes, after: bytes) -> None:
    assert start().client().call(before + b'{"payload":{"a":1}}' + after) == OK


PIECE = 1048576  # the runtime's, at which long texts are cut
LONG = {
    "a text of one piece": "x" * PIECE,
    "what is escaped on both sides of a cut": 'x"' * PIECE,
    "a pair of surrogates at a cut": "x" * (PIECE - 1) + "\U0001f600" + "x" * PIECE,
    "halves of pairs at a cut": "x" * (PIECE - 1) + "\ud83d\ude00" * PIECE,
    "several, and short ones between": [["", "\0" * PIECE], {"a\0": "b" * PIECE * 2}, "\0", 1.5],
    "a key": {"k" * PIECE: {"k" * (PIECE + 1): None}},
    "of another class": type("Text", (str,), {"__getitem__": None})("x" * PIECE),
    "none": {"a": ["b", 1, None, True]},
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
def test_long_texts_of_large_messages_are_encoded_like_all(runtime: ModuleType, value: Any) -> None:
    _, encode, encode_large, _ = runtime.make_codec(None, False)
    message = runtime.Message()
    message.result = value
    expected = encode(message)
    message.result = value
    assert bytes(encode_large(message)) == expected


@pytest.mark.parametrize("threads", [False, True])
def test_texts_are_escaped_alike_whatever_the_last_reply_was(
    runtime: ModuleType, threads: bool
) -> None:
    """The runtime escapes long texts in another way after a reply that had some."""
    encode = runtime.make_codec(None, threads)[1]
    message = runtime.Message()
    characters = [*map(chr, range(0x180)), "\u2028", "\ud800", "\udc00", "\U0001f600"]
    texts = [before + one + "x" * 300 for one in characters for before in ("", "x" * 300)]
    texts += ["x" * size for size in (0, 1, 199, 200, 201, PIECE + 1)]
    other = type("Text", (str,), {"isascii": lambda _: True, "encode": lambda _: b""})
    texts += [other(text) for text in texts[:80]]
    for before in ("x" * 1000, ["", 1], "x\n" * 1000):
        for text in texts:
            for value in (text, {text: text}, [text, 1.5]):
                message.result = before
                encode(message)
                message.result = value
                reply = {"status": "ok", "result": value}
                assert encode(message) == json.dumps(reply, separators=(",", ":")).encode()


def test_a_large_result_that_is_no_json_is_a_processing_error(start: Start) -> None:
    source = """
        def spoil(message):
            return [message["payload"]["text"], float(message["payload"]["number"])]
    """
    client = start(source, "app.spoil").client()
    text = "x" * 17_000_000
    reply = client.call({"payload": {"text": text, "number": "nan"}})
    assert reply["message"].startswith("result is not JSON-serializable at result[1]: nan; ")
    good = client.call({"payload": {"text": text, "number": "1.5"}})
    assert good == {"status": "ok", "result": [text, 1.5]}


@pytest.mark.parametrize("size", [41, 5000, 1_000_000], ids=lambda size: f"{size}-bytes")
def test_a_message_over_the_limit_is_discarded_and_the_connection_stays(
    start: Start, size: int
) -> None:
    client = start(ASYA_MAX_MESSAGE_SIZE="40").client()
    client.send(frame(b"x" * size) + frame(ECHO))
    assert client.reply() == failure(
        "connection_error", f"message of {size} bytes exceeds the limit of 40 bytes", None
    )
    assert client.reply() == OK


def test_a_message_of_exactly_the_limit_is_served(start: Start) -> None:
    assert start(ASYA_MAX_MESSAGE_SIZE="19").client().call(b'{"payload":{"a":1}}') == OK


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"\x00\x00", "connection closed inside a length prefix"),
        (b"\x00\x00\x00\x09abc", "connection closed after 3 of 9 bytes"),
    ],
    ids=["in-prefix", "in-body"],
)
def test_an_end_inside_a_frame_is_a_connection_error(
    start: Start, sent: bytes, message: str
) -> None:
    client = start().client()
    client.send(sent)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.reply() == failure("connection_error", message, None)
    assert client.at_end()


@pytest.mark.parametrize("sent", [b"\x00", b"\x00\x00\x00\x09abc"], ids=["prefix", "body"])
def test_a_pause_inside_a_frame_ends_the_connection(start: Start, sent: bytes) -> None:
    process = start(ASYA_READ_TIMEOUT="0.2")
    idle, client = process.client(), process.client()
    client.send(sent)
    message = "timed out after 0.2 s in the middle of a frame"
    assert client.reply() == failure("connection_error", message, None)
    assert client.at_end()
    assert idle.call(ECHO) == OK


def test_the_time_of_the_handler_is_no_pause(start: Start, folder: Path) -> None:
    source = """
        import os, time
        def slow(message):
            if message["payload"].get("slow"):
                open("in-handler", "w").close()
                time.sleep(0.3)
                while not os.path.exists("sent"): time.sleep(0.01)
            return 1
    """
    process = start(source, "app.slow", ASYA_READ_TIMEOUT="0.2")
    other, one = process.client(), process.client()
    data, reply = frame({"payload": {}}), {"status": "ok", "result": 1}
    # The kernel tells of the connection first that was served last
    assert [client.call({"payload": {}}) for client in (one, other)] == [reply] * 2
    process.signal(signal.SIGSTOP)  # so that nothing comes between the two
    other.send(data[:9])
    one.send(frame({"payload": {"slow": True}}))
    process.signal(signal.SIGCONT)
    eventually((folder / "in-handler").exists, "the call")
    other.send(data[9:])
    (folder / "sent").touch()
    assert (one.reply(), other.reply()) == (reply, reply)


@pytest.mark.parametrize(
    ("setting", "seen"),
    [("true", {"payload": {"a": 1}, "id": "x"}), ("false", {"payload": {"a": 1}})],
    ids=["with", "without"],
)
def test_the_handler_gets_metadata_only_by_wish(
    start: Start, setting: str, seen: dict[str, Any]
) -> None:
    process = start(
        "def whole(message): return message", "app.whole", ASYA_INCLUDE_METADATA=setting
    )
    got = process.client().call({"payload": {"a": 1}, "id": "x"})
    assert got == {"status": "ok", "result": seen}


RESULTS = """
    import collections, dataclasses, datetime, sys
    class Rude(Exception):
        def __str__(self): raise SystemExit(9)
    class Own(Exception):
        def __init__(self, **fields): self.__dict__.update(fields)
        def __str__(self): return "own"
    class Ruder(Exception):
        def __getattribute__(self, name): raise SystemExit(9)
        def __setattr__(self, name, value): raise SystemExit(9)
    class Sly(Exception):
        exceptions = severity = retry_after = property(lambda self: sys.exit(9))
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        reason: str
        def __str__(self): return self.reason
    class Nameless(type):
        @property
        def __name__(cls): raise SystemExit(9)
    class Unspeakable(Exception, metaclass=Nameless): pass
    class Table(dict):
        def items(self): raise KeyboardInterrupt
    def half():
        yield 1
        raise ValueError("half way")
    def chain(length):
        error = ValueError(0)
        for n in range(1, length):
            error, error.__cause__ = ValueError(n), error
        raise error
    def boom(error): raise error
    def circular():
        x = {}; x["again"] = [x]
        return x
    def deep():
        x = []
        for _ in range(200000): x = [x]
        return x
    async def coroutine(): pass
    def evaluate(message): return eval(message["payload"]["code"])
"""
RESULT_TABLE: dict[str, Any] = {
    "None": None, "True": True, "'ä'": "ä", "[]": [], "[{'a': 1}, {'b': 2}]": [{"a": 1}, {"b": 2}],
    "(1, 2)": [1, 2], "{1: 'a', None: 'b'}": {"1": "a", "null": "b"}, "1e300": 1e300,
    "2**64": 2**64, "'\\ud800'": "\ud800", "(n for n in (1, 2))": [1, 2],
    "collections.namedtuple('P', 'x y')(1, 2)": [1, 2], "coroutine()": None,
}  # fmt: skip
BAD = "result is not JSON-serializable at "
FAILURES: dict[str, tuple[str, str]] = {
    "boom(Unspeakable())": ("Unspeakable", "Unspeakable"),
    "float('nan')": (BAD + "result: nan", "ValueError"),
    "{'items': [{'score': 1.0}, {'score': float('inf')}]}": (
        BAD + "result.items[1].score: inf", "ValueError"),
    "{'a': {1, 2}}": (BAD + "result.a: set", "TypeError"),
    "[b'x']": (BAD + "result[0]: bytes", "TypeError"),
    "{(1, 2): 3}": (BAD + "result: key of type tuple", "TypeError"),
    "{'t': datetime.timedelta(1)}": (BAD + "result.t: datetime.timedelta", "TypeError"),
    "[coroutine()]": (BAD + "result[0]: coroutine; await it in the handler", "TypeError"),
    "circular()": (BAD + "result.again[0]: contains itself", "ValueError"),
    "deep()": (BAD + "result" + "[0]" * 400 + ": nested too deeply", "RecursionError"),
    "half()": ("half way", "ValueError"),
    "boom(ValueError('x' * 3000))": ("x" * 2000, "ValueError"),
    "boom(ValueError('\\udcff'))": ("\ufffd", "ValueError"),
    "boom(ValueError('a\\x1b[31m\\x00\\x7f\\x9b\\r\\n\\tb\\u202e'))": (
        "a\\u001b[31m\\u0000\\u007f\\u009b\\u000d\n\tb\\u202e", "ValueError"),
    "boom(type('E\\n\\x1b' + 'x' * 300, (Exception,), {})('long'))": (
        "long", "E\n\\u001b" + "x" * 192),
    "boom(ValueError())": ("ValueError", "ValueError"),
    "boom(Rude())": ("Rude", "Rude"),
    "boom(Ruder())": ("Ruder", "Ruder"),
    "boom(Frozen('cold'))": ("cold", "Frozen"),
    "boom(Sly('sly'))": ("sly", "Sly"),
    "chain(5000)": ("4999", "ValueError"),
    "[Table(a=1)]": (BAD, "KeyboardInterrupt"),
    "{'a': {}.keys()}": (BAD + "result.a: dict_keys", "TypeError"),
    "[object]": (BAD + "result[0]: type", "TypeError"),
    "{'a': [lambda: 1]}": (BAD + "result.a[0]: function", "TypeError"),
    "boom(SystemExit(3))": ("3", "SystemExit"),
    "boom(KeyboardInterrupt())": ("KeyboardInterrupt", "KeyboardInterrupt"),
    "boom(GeneratorExit())": ("GeneratorExit", "GeneratorExit"),
    "boom(StopIteration(1))": ("1", "StopIteration"),
    "boom(BlockingIOError(11, 'later'))": ("[Errno 11] later", "BlockingIOError"),
    "boom(TimeoutError('slow'))": ("slow", "TimeoutError"),
    "9 ** 9999": (BAD + "result", "ValueError"),
}  # fmt: skip


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process for the whole table: each answer also shows that the one before did no harm."""
    with tempfile.TemporaryDirectory(prefix="asya-") as name:
        folder = Path(name)
        (folder / "app.py").write_text(textwrap.dedent(RESULTS))
        environ = environment(folder, ASYA_HANDLER="app.evaluate")
        process = Process(folder, [sys.executable, str(RUNTIME)], environ).ready()
        yield process.client()
        process.end()


@pytest.mark.parametrize(("code", "result"), RESULT_TABLE.items(), ids=RESULT_TABLE)
def test_results_that_are_json(evaluator: Any, code: str, result: Any) -> None:
    assert evaluator.call({"payload": {"code": code}}) == {"status": "ok", "result": result}


@pytest.mark.parametrize(("code", "expected"), FAILURES.items(), ids=FAILURES)
def test_failures_and_results_that_are_no_json_get_their_one_reply(
    evaluator: Any, code: str, expected: tuple[str, str]
) -> None:
    got = evaluator.call({"payload": {"code": code}})
    message, kind = expected
    if message.startswith(BAD):
        got["message"] = got["message"][: len(message)]
    assert got == failure("processing_error", message, kind)


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        (
            "true",
            failure("oom_error", "out of memory", "MemoryError", severity="recoverable")
            | {"retry_after": 30},
        ),
        (
            "false",
            failure(
                "processing_error", "the handler raised an exception that cannot be printed", None
            ),
        ),
    ],
    ids=["detected", "not-detected"],
)
def test_no_memory_even_for_the_reply_is_answered_with_one_made_before(
    start: Start, detection: str, expected: dict[str, Any]
) -> None:
    source = """
        class Large(Exception):
            def __str__(self): raise MemoryError
        def fail(message):
            if message["payload"]: return 1
            raise Large
    """
    client = start(source, "app.fail", ASYA_ENABLE_OOM_DETECTION=detection).client()
    for _ in range(2):
        assert client.call({"payload": {}}) == expected
        assert client.call({"payload": {"a": 1}}) == {"status": "ok", "result": 1}


def test_a_reply_that_does_not_fit_a_frame_is_a_processing_error(
    start: Start, folder: Path
) -> None:
    """The limit is a constant: a copy with a small one saves 4 GiB."""
    (folder / "runtime.py").write_text(
        RUNTIME.read_text().replace("FRAME_LIMIT = 4294967295", "FRAME_LIMIT = 100")
    )
    client = start(argv=[sys.executable, str(folder / "runtime.py")]).client()
    assert client.call({"payload": {"a": "x" * 67}})["result"] == {"a": "x" * 67}
    message = "reply of 101 bytes exceeds the frame limit"
    got = client.call({"payload": {"a": "x" * 68}})
    assert got == failure("processing_error", message, "OverflowError")
    assert client.call(ECHO) == OK


def test_a_handler_that_ends_the_process_is_the_end_of_the_stream(start: Start) -> None:
    process = start("import os\ndef end(message): os._exit(3)", "app.end")
    client = process.client()
    client.send(frame(ECHO))
    assert client.at_end()
    assert process.wait() == 3


VERDICTS: dict[str, dict[str, Any]] = {
    "severity='recoverable', retry_after=5": {"severity": "recoverable", "retry_after": 5},
    "severity='recoverable', retry_after=0.5": {"severity": "recoverable", "retry_after": 0.5},
    "severity='recoverable'": {"severity": "recoverable"},
    "severity='fatal'": {},
    "severity='Fatal'": {},
    "severity=3, retry_after=None": {},
    "retry_after=0": {"retry_after": 0},
    "retry_after=-1": {},
    "retry_after=True": {},
    "retry_after='5'": {},
    "retry_after=float('nan')": {},
    "retry_after=float('inf')": {},
    "retry_after=10**400": {},
}


@pytest.mark.parametrize(("fields", "expected"), VERDICTS.items(), ids=VERDICTS)
def test_an_exception_may_carry_its_own_verdict(
    evaluator: Any, fields: str, expected: dict[str, Any]
) -> None:
    got = evaluator.call({"payload": {"code": f"boom(Own({fields}))"}})
    assert got == failure("processing_error", "own", "Own", **expected)


def test_no_payload_and_no_traceback_in_the_reply_but_in_the_log(start: Start) -> None:
    process = start("def fail(message): return message['payload']['secret']['x']", "app.fail")
    got = process.call({"secret": {}})
    assert got == failure("processing_error", "'x'", "KeyError")
    process.logged("return message['payload']['secret']['x']")
    assert "asya_runtime.py" not in process.log()
