"""What a handler may return beside JSON's types; both JSON libraries write and read the same."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import json
import math
import pathlib
import sys
import textwrap
import uuid
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import RUNTIME, Start
from .served import Case, check, error, ok

BAD = "result is not JSON-serializable at "
SOURCE = """
    import array, builtins, collections, dataclasses, datetime, decimal, enum, fractions, pathlib
    import types, uuid
    frozendict = getattr(builtins, "frozendict", collections.OrderedDict)  # since 3.15
    class Frozen(frozendict): pass
    class Color(enum.Enum):
        RED = "red"
        PAIR = (1, 2)
        NAN = float("nan")
    class Level(enum.IntEnum): HIGH = 3
    class Word(str, enum.Enum): YES = "yes"
    class Right(enum.IntFlag):
        READ = 1
        WRITE = 2
    Point = collections.namedtuple("Point", "x y")
    @dataclasses.dataclass
    class Box:
        label: str
        score: float = 0.5
        _hidden: object = None
        kind: dataclasses.InitVar[int] = 3
    @dataclasses.dataclass(frozen=True)
    class Slots:
        __slots__ = ("a",)
        a: int
    class Model:
        def __init__(self, **fields): self.fields = fields
        def model_dump(self, mode): return {**self.fields, "mode": mode}
    class DType:
        fields = None
        def __init__(self, kind, **fields):
            self.kind, self.base = kind, self
            if fields: self.fields = {name: (DType(kind), 0) for name, kind in fields.items()}
    class Array:
        def __init__(self, items, dtype=None): self.items, self.dtype = items, dtype
        def tolist(self): return self.items
    class NaT(datetime.datetime):
        def __eq__(self, other): return False
        def __ne__(self, other): return True
        __hash__ = None
    class Own(list):
        def __iter__(self): return iter(["own"])
    class Loud(float):
        def __repr__(self): return "loud"
    class Both(dict):
        def model_dump(self, mode): return "never"
    class Same:
        def tolist(self): return Same()
    class Fails:
        def model_dump(self, mode): raise KeyError("model")
    class Memory:
        def tolist(self): raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
    def around():
        box = Box("a")
        box.score = [box]
        return box
    def predict(message): return eval(message["payload"]["code"])
"""
UTC = "datetime.timezone.utc"
WRITTEN: dict[str, Any] = {
    "Color.RED": "red",
    "[Color.PAIR, Level.HIGH, Word.YES, Right.READ | Right.WRITE]": [[1, 2], 3, "yes", 3],
    "Point(1, Point(2, None))": [1, [2, None]],
    "Box('a')": {"label": "a", "score": 0.5, "_hidden": None},
    "{'boxes': [Box('a', 1, Slots(2))]}": {
        "boxes": [{"label": "a", "score": 1, "_hidden": {"a": 2}}]
    },
    "Model(a=[Color.RED])": {"a": ["red"], "mode": "json"},
    "Array([[1.5], [True]])": [[1.5], [True]],
    "array.array('d', [1.5])": [1.5],
    f"datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo={UTC})": "2026-01-02T03:04:05.000006+00:00",
    "datetime.datetime(2026, 1, 2)": "2026-01-02T00:00:00",
    "datetime.date(2026, 1, 2)": "2026-01-02",
    "datetime.time(3, 4)": "03:04:00",
    "uuid.UUID(int=5)": "00000000-0000-0000-0000-000000000005",
    "[decimal.Decimal('1.10'), decimal.Decimal('1E+3')]": ["1.10", "1E+3"],
    "[pathlib.Path('/a/b'), pathlib.PureWindowsPath('c:/d')]": ["/a/b", "c:\\d"],
    "collections.OrderedDict(a=collections.defaultdict(int, b=1))": {"a": {"b": 1}},
    "collections.Counter('aa')": {"a": 2},
    "Both(a=1)": {"a": 1},
    "[Own([1]), Loud(1.5)]": [["own"], 1.5],
    "frozendict(a=[Frozen(b=Color.RED)])": {"a": [{"b": "red"}]},
    "{Word.YES: 1}": {"yes": 1},
    "{1: 2, 1.5: 3, None: 4, True: 5}": {"1": 5, "1.5": 3, "null": 4},
    "[2**64, -2**63 - 1, '\\ud800']": [2**64, -(2**63) - 1, "\ud800"],
    "[[1.0] * 100, None]": [[1.0] * 100, None],
}
REFUSED: dict[str, tuple[str, str]] = {
    "{'a': Color.NAN}": ("result.a: nan", "ValueError"),
    "[1] * 100 + [float('-inf'), None]": ("result[100]: -inf", "ValueError"),
    "[Loud('nan')]": ("result[0]: nan", "ValueError"),
    "{'a': {float('inf'): 1}}": ("result.a: key inf", "ValueError"),
    "Box('a', float('nan'))": ("result.score: nan", "ValueError"),
    "{'a': Model(b=[1, float('inf')])}": ("result.a.b[1]: inf", "ValueError"),
    "Array([[0.5], [float('nan')]])": ("result[1][0]: nan", "ValueError"),
    "Frozen(a=[frozendict(b=float('nan'))])": ("result.a[0].b: nan", "ValueError"),
    "[decimal.Decimal('NaN')]": ("result[0]: decimal.Decimal", "TypeError"),
    "[decimal.Decimal('-Infinity')]": ("result[0]: decimal.Decimal", "TypeError"),
    "[NaT(2026, 1, 2)]": ("result[0]: app.NaT", "TypeError"),
    "Array(5, DType('M'))": ("result: app.Array", "TypeError"),
    "{'a': Array([5], DType('m'))}": ("result.a: app.Array", "TypeError"),
    "Array([(1, 5)], DType('V', a='i', b='M'))": ("result: app.Array", "TypeError"),
    "Array(Array(7))": ("result: app.Array", "TypeError"),
    "Same()": ("result: app.Same", "TypeError"),
    "[Color, Box]": ("result[0]: enum.EnumMeta", "TypeError"),
    "[Box]": ("result[0]: type", "TypeError"),
    "[datetime.timedelta(1)]": ("result[0]: datetime.timedelta", "TypeError"),
    "[fractions.Fraction(1, 3), 1j]": ("result[0]: fractions.Fraction", "TypeError"),
    "[memoryview(b'a')]": ("result[0]: memoryview", "TypeError"),
    "{'a': bytearray(b'a')}": ("result.a: bytearray", "TypeError"),
    "{'a': types.SimpleNamespace(a=1)}": ("result.a: types.SimpleNamespace", "TypeError"),
    "[frozenset()]": ("result[0]: frozenset", "TypeError"),
    "{Color.RED: 1}": ("result: key of type app.Color", "TypeError"),
    "{datetime.date(2026, 1, 2): 1}": ("result: key of type datetime.date", "TypeError"),
    "around()": ("result.score[0]: contains itself", "ValueError"),
    "{'a\\n\\x1b[31m' + 'k' * 100: {1}}": (
        "result.a\\u000a\\u001b[31m" + "k" * 53 + "...: set", "TypeError"),
}  # fmt: skip


@pytest.mark.parametrize("library", ["stdlib", "auto"])
@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_results_as_people_return_them_are_written_and_all_else_is_refused_with_its_place(
    start: Start, python: str, library: str, concurrency: str
) -> None:
    process = start(
        SOURCE, "app.predict", python=python, ASYA_JSON=library, ASYA_CONCURRENCY=concurrency
    )
    client = process.client()
    got = {code: client.call({"payload": {"code": code}}) for code in (*WRITTEN, *REFUSED)}
    kinds = "EnumMeta", "EnumType"  # up to 3.10, and later
    for code, reply in got.items():
        if code in REFUSED:
            place = REFUSED[code][0]
            message = reply["message"].replace(kinds[1], kinds[0])
            reply["message"] = message[: len(BAD + place + "; ")]
    expected = {code: ok(result) for code, result in WRITTEN.items()}
    for code, (place, kind) in REFUSED.items():
        expected[code] = error(kind, BAD + place + "; ")
    wrong = {code: (got[code], expected[code]) for code in got if got[code] != expected[code]}
    assert wrong == {}


def test_what_a_conversion_raises_is_answered_as_if_the_handler_had_raised_it(
    start: Start, folder: Any, python: str
) -> None:
    text = "CUDA out of memory. Tried to allocate 1 GiB"
    more = {"severity": "recoverable", "retry_after": 60}
    calls: list[tuple[object, object]] = [
        ({"code": "[Fails()]"}, error("KeyError", BAD + "result[0]: app.Fails; 'model'")),
        ({"code": "Memory()"}, error("RuntimeError", text, "cuda_oom_error", **more)),
        ({"code": "1"}, ok(1)),
    ]
    check(start, folder, Case(SOURCE, calls), python)


FRAMEWORKS: dict[str, tuple[str, Any]] = {
    "numpy.float32(0.5)": ("ok", 0.5),
    "numpy.float64(0.1)": ("ok", 0.1),
    "[numpy.int64(1), numpy.bool_(True), numpy.str_('a')]": ("ok", [1, True, "a"]),
    "numpy.arange(6).reshape(2, 3)": ("ok", [[0, 1, 2], [3, 4, 5]]),
    "{'a': numpy.array([1.5, numpy.nan])}": ("bad", "result.a[1]: nan"),
    "numpy.array(5)": ("ok", 5),
    "numpy.array([(1, 2.5)], dtype=[('a', 'i4'), ('b', 'f8')])": ("ok", [[1, 2.5]]),
    "numpy.datetime64('2026-01-02')": ("bad", "result: numpy.datetime64"),
    "numpy.datetime64('NaT')": ("bad", "result: numpy.datetime64"),
    "numpy.array(['2026-01-02'], dtype='M8[ns]')": ("bad", "result: numpy.ndarray"),
    "numpy.timedelta64(1, 's')": ("bad", "result: numpy.timedelta64"),
    "numpy.array([(1, '2026-01-02')], dtype=[('a', 'i4'), ('b', 'M8[ns]')])": (
        "bad", "result: numpy.ndarray"),
    "numpy.array([numpy.datetime64('NaT')], dtype=object)": ("bad", "result[0]: numpy.datetime64"),
    "numpy.longdouble(1)": ("bad", "result: numpy.longdouble"),
    "numpy.array([1j])": ("bad", "result[0]: complex"),
    "numpy.array([b'a'])": ("bad", "result[0]: bytes"),
    "pydantic.create_model('M', a=(int, 1), t=(datetime.date, None))(t='2026-01-02')": (
        "ok", {"a": 1, "t": "2026-01-02"}),
}  # fmt: skip


@pytest.mark.parametrize("library", ["stdlib", "orjson"])
@pytest.mark.parametrize(("code", "expected"), FRAMEWORKS.items(), ids=FRAMEWORKS)
def test_results_of_frameworks(
    runtime: ModuleType, library: str, code: str, expected: tuple[str, Any]
) -> None:
    name = code.replace("[", " ").split(".")[0].split(" ")[-1].split("{")[-1]
    framework = pytest.importorskip("numpy" if "numpy" in code else name)
    value = eval(
        code, {"__name__": "app", "numpy": framework, "pydantic": framework, "datetime": datetime}
    )
    assert written(runtime, library, value)[:2] == expected


def test_no_framework_is_imported(start: Start, folder: Any) -> None:
    for name in ("numpy", "torch", "pandas", "pydantic", "jax"):
        (folder / f"{name}.py").write_text("1 / 0")
    process = start(SOURCE + "\n    import sys", "app.predict")
    assert process.call({"code": "[Box('a'), Array([1])]"})["status"] == "ok"
    names = "[n for n in ('numpy', 'torch', 'pandas', 'pydantic', 'jax') if n in sys.modules]"
    assert process.call({"code": names}) == ok([])


# --- both libraries: the same values, the same errors -----------------------------------


class Color(enum.Enum):
    RED = "red"
    DEEP = (1, ("a", None))


class Level(enum.IntEnum):
    LOW = -5


class Word(str, enum.Enum):  # noqa: UP042
    YES = "yes"


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class Rows(list[Any]):
    pass


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Box:
    label: Any
    _score: Any = 1


class Dump:
    def __init__(self, value: Any) -> None:
        self.value = value

    def model_dump(self, mode: str) -> Any:
        return self.value


class Array:
    def __init__(self, value: Any) -> None:
        self.value = value

    def tolist(self) -> Any:
        return self.value


integers = st.one_of(
    st.integers(), st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30])
)
texts = st.one_of(
    st.text(), st.text(st.characters(codec=None)), st.sampled_from(["\ud800", "\0", "\x7f"])
)
floats = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    finite,
    floats,
    texts,
    st.builds(Text, texts),
    st.builds(Whole, integers),
    st.builds(Real, finite),
    st.sampled_from([*Color, *Level, *Word, Color, Box, {1}, b"a", 1j, object(), len]),
    st.datetimes(timezones=st.none() | st.just(datetime.UTC)),
    st.dates(),
    st.times(),
    st.uuids(),
    st.decimals(),
    st.just(pathlib.PurePosixPath("/a")),
)
keys = st.one_of(
    texts, st.builds(Text, texts), integers, finite, st.none(), st.booleans(),
    st.sampled_from([*Level, *Word, Color.RED, (1,), uuid.UUID(int=1)]),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(Rows),
        st.builds(Point, inner, inner),
        st.dictionaries(texts, inner),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(texts, inner, max_size=3).map(collections.OrderedDict),
        st.builds(Box, inner, inner),
        st.builds(Dump, inner),
        st.builds(Array, inner),
        st.lists(inner, min_size=1, max_size=2).map(lambda items: items * 40),
    ),
    max_leaves=20,
)


def codec(runtime: ModuleType, library: str) -> Any:
    return runtime.make_codec(runtime.choose_json(library, 0)[0], False)


def written(runtime: ModuleType, library: str, value: Any) -> tuple[str, Any, str]:
    """Encode a result: ("ok", what it reads as, ""), or ("bad", the place, the error)."""
    message = runtime.Message()
    message.result = value
    encode = codec(runtime, library)[1]
    try:
        reply = encode(message)
    except Exception as problem:
        place = "result" + runtime.find_unencodable(value).partition("; ")[0]
        return "bad", place, f"{type(problem).__name__}: {problem}"
    return "ok", json.loads(bytes(reply), parse_constant=pytest.fail)["result"], ""


exactly = settings(
    deadline=None,
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@exactly
@given(values)
def test_both_libraries_write_the_same_values_and_raise_the_same_errors(
    runtime: ModuleType, value: Any
) -> None:
    usual, faster = written(runtime, "stdlib", value), written(runtime, "orjson", value)
    assert repr(usual) == repr(faster)  # tells 1 from 1.0 and from True


NUMBERS = ["-0", "0", "-0.0", "1e999", "-1e999", "1E+400", "9" * 400, "1" + "0" * 308 + ".5",
    str(2**63), str(2**64 - 1), str(2**64), str(-(2**63)), str(-(2**63) - 1), "1e-400", "5e-324",
    "0." + "1" * 40, "1" * 18, "1" * 19, "1" * 20, "-" + "9" * 19, "1e5", "9" * 5000, "01", "1.",
    "NaN", "Infinity", "-Infinity", "1.7976931348623159e308"]  # fmt: skip
numbers = st.one_of(st.sampled_from(NUMBERS), finite.map(repr), integers.map(str))
strings = st.one_of(texts.map(json.dumps), st.sampled_from(['"\\ud800"', '"\\ud83d"', '"a\tb"']))
documents = st.recursive(
    st.one_of(numbers, strings, st.sampled_from(["null", "true", "false", "", "x"])),
    lambda inner: st.one_of(
        st.lists(inner).map(lambda items: "[" + ", ".join(items) + "]"),
        st.lists(inner, min_size=1, max_size=2).map(lambda items: "[" + ",".join(items * 40) + "]"),
        st.dictionaries(strings, inner).map(
            lambda items: "{" + ",".join(f"{k}:{v}" for k, v in items.items()) + "}"
        ),
    ),
    max_leaves=15,
)


def read(runtime: ModuleType, library: str, body: Any) -> tuple[str, str]:
    message = runtime.Message()
    message.body = body
    decode = codec(runtime, library)[0]
    try:
        return "ok", repr(decode(message))
    except Exception as problem:
        return type(problem).__name__, str(problem)


@exactly
@given(documents, st.sampled_from(["", " ", "\r\n\t " * 40]), st.booleans())
def test_both_libraries_read_the_same_messages_and_raise_the_same_errors(
    runtime: ModuleType, document: str, space: str, as_view: bool
) -> None:
    text = f'{space}{{"payload":{document}}}{space}'
    body: Any = text.encode("utf-8", "surrogatepass")
    body = memoryview(bytearray(body)) if as_view else body
    assert read(runtime, "stdlib", body) == read(runtime, "orjson", body)


@exactly
@given(documents)
def test_what_is_read_is_what_the_json_module_reads_without_infinity(
    runtime: ModuleType, document: str
) -> None:
    got = read(runtime, "stdlib", document.encode("utf-8", "surrogatepass"))
    assert (got[0] == "ok") == is_valid(document)
    if got[0] == "ok":
        assert got[1] == repr(json.loads(document))


def is_valid(document: str) -> bool:
    def is_finite(value: Any) -> bool:
        if isinstance(value, dict):
            return all(map(is_finite, value.values()))
        if isinstance(value, list):
            return all(map(is_finite, value))
        return not isinstance(value, float) or math.isfinite(value)

    try:
        document.encode("utf-8")
        return is_finite(json.loads(document))
    except ValueError:
        return False


TOO_LARGE: dict[str, tuple[str, str]] = {
    "alone": ('{"payload":{"a":1e999}}', " at payload.a"),
    "negative": ('{"payload":{"a":[1,-1e999]}}', " at payload.a[1]"),
    "after-space": (' \n{"payload":{"a":1e999}}', " at payload.a"),
    "metadata": ('{"id":1E400,"payload":{}}', " at id"),
    "digits": ('{"payload":{"a":' + "9" * 400 + ".0}}", " at payload.a"),
    "among-many": ('{"payload":[' + "0.123456789," * 5000 + "1e999]}", " at payload[5000]"),
    "key": ('{"payload":{"a\\n\\u001b":1e999}}', " at payload.a\\u000a\\u001b"),
    "long-key": ('{"' + "k" * 99 + '":1e999}', " at " + "k" * 60 + "..."),
    "deep": ('{"payload":' + "[" * 450 + "1e999" + "]" * 450 + "}", ""),
}


@pytest.mark.parametrize("library", ["stdlib", "orjson"])
@pytest.mark.parametrize(("body", "place"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_number_that_decodes_to_infinity_is_invalid_json_with_its_place(
    runtime: ModuleType, library: str, body: str, place: str
) -> None:
    got = read(runtime, library, body.encode())
    assert got == ("ValueError", "number too large for a double" + place)


@pytest.mark.parametrize("library", ["stdlib", "orjson"])
def test_large_integers_are_read_in_each_place_of_a_message(
    runtime: ModuleType, library: str
) -> None:
    """Messages are searched for them in pieces, and by samples of their bytes."""
    for before in (0, 1, 8, 1_048_550, 1_048_565, 1_048_575, 1_048_576, 2_097_160):
        body = b'{"a":"%s","n":[%d,0.5]}' % (b"x" * before, 2**64)
        assert read(runtime, library, body)[1].endswith("'n': [18446744073709551616, 0.5]}")


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("library", ["stdlib", "orjson"])
@pytest.mark.parametrize("body", [b"[" + b"{}," * 200_000 + b"{}]", b"[" + b"{}," * 200_000])
def test_no_garbage_is_collected_while_decoding(
    runtime: ModuleType, library: str, body: bytes, enabled: bool
) -> None:
    import gc

    collections_seen: list[str] = []
    was = gc.isenabled()
    decode = codec(runtime, library)[0]
    message = runtime.Message()
    message.body = body
    (gc.enable if enabled else gc.disable)()
    gc.callbacks.append(lambda phase, info: collections_seen.append(phase))
    try:
        try:
            decode(message)
            count = len(collections_seen)
        except ValueError:
            count = 0
        assert (count, gc.isenabled()) == (0, enabled)
    finally:
        gc.callbacks.pop()
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("depth", [300, 3000, 100_000])
def test_a_deep_result_is_answered(
    runtime: ModuleType, kind: Callable[[Any], Any], depth: int
) -> None:
    """orjson 3.12 and 3.13 write beyond their buffer for tuples."""
    value: Any = kind(())
    for _ in range(depth):
        value = kind((value,))
    assert written(runtime, "orjson", value)[0] == written(runtime, "stdlib", value)[0]


def test_what_orjson_would_write_in_its_own_way_is_left_to_the_standard_library(
    runtime: ModuleType,
) -> None:
    class Twice(dict[str, int]):
        def items(self) -> Any:
            return [("a", 1), ("a", 2)]

    deep: Any = ()
    for _ in range(50):
        deep = (deep,)
    for value in (Twice(a=1), deep):
        replies = []
        for library in ("orjson", "stdlib"):
            message = runtime.Message()
            message.result = value
            replies.append(bytes(codec(runtime, library)[1](message)))
        assert replies[0] == replies[1]
    orjson = runtime.choose_json("orjson", 0)[0]
    given: list[Any] = []
    spy = SimpleNamespace(**vars(orjson))

    def dumps(*arguments: Any) -> Any:
        given.append(arguments)
        return orjson.dumps(*arguments)

    spy.dumps = dumps
    for value in ((((),),), deep):
        message = runtime.Message()
        message.result = value
        runtime.make_codec(spy, False)[1](message)
    assert len(given) == 1  # it corrupts memory for deep ones


def test_the_search_for_the_place_ends(runtime: ModuleType, monkeypatch: Any) -> None:
    monkeypatch.setattr(runtime, "SEARCH_TIME", 0.0)
    value = {"a": [1, 2, float("nan")]}
    assert runtime.find_unencodable(value) == ".a: not found before it in 0 s"


# --- which library -------------------------------------------------------------------------

FAKE = """
    __version__ = {version!r}
    OPT_PASSTHROUGH_SUBCLASS, OPT_PASSTHROUGH_DATACLASS, OPT_PASSTHROUGH_DATETIME = 1, 2, 4
    def dumps(value, default, option): return b"[1]"
    def loads(body): return [1]
"""
OLD = "orjson 3.9.14 is too old"
CHOICES: dict[str, tuple[str | None, str]] = {
    "none": ("raise ImportError", "standard library, because orjson is not installed"),
    "broken": ("1 / 0", "standard library, because orjson is not installed"),
    "another": ("", "standard library, because orjson is not installed"),
    "no-version": (FAKE.format(version="new"), f"standard library, because orjson new {OLD[-10:]}"),
    "old": (FAKE.format(version="3.9.14"), f"standard library, because {OLD}"),
    "oldest-good": (FAKE.format(version="3.9.15"), "orjson 3.9.15"),
    "new": (FAKE.format(version="3.14.0rc1"), "orjson 3.14.0rc1"),
    "the-real-one": (None, "orjson 3."),
}


@pytest.mark.parametrize(("source", "line"), CHOICES.values(), ids=CHOICES)
def test_auto_takes_an_orjson_that_keeps_the_contract_and_the_start_line_says_which_and_why(
    start: Start, folder: Any, source: str | None, line: str
) -> None:
    if source is not None:
        (folder / "orjson.py").write_text(textwrap.dedent(source))
    process = start(ASYA_JSON="")
    said = f"asya_runtime: serving app.echo on {folder}/app.sock; JSON: {line}"
    process.logged(said)


def test_an_orjson_that_is_too_old_is_refused_where_it_is_asked_for(
    start: Start, folder: Any
) -> None:
    (folder / "orjson.py").write_text(textwrap.dedent(FAKE.format(version="3.9.14")))
    process = start(ready=False, ASYA_JSON="orjson")
    assert process.wait() == 78
    fix = "install 3.9.15 or newer or set ASYA_JSON=auto"
    assert process.log() == f"asya_runtime: ASYA_JSON=orjson: {OLD}; {fix}\n"


def test_files_of_user_code_do_not_come_into_orjsons_import(start: Start, folder: Any) -> None:
    names = ("uuid", "dataclasses", "datetime", "zoneinfo", "enum", "decimal", "copy", "inspect")
    for name in names:
        (folder / f"{name}.py").write_text("mine = True")
    source = """
        import uuid, dataclasses, zoneinfo, copy
        def echo(message): return [uuid.mine, dataclasses.mine, zoneinfo.mine, copy.mine]
    """
    process = start(source, ASYA_JSON="orjson")
    assert process.call({}) == ok([True] * 4)
    assert "JSON: orjson 3." in process.log()


LIMITS = {
    "ulimit": ["sh", "-c", 'ulimit -v 4000000; exec "$@"', "sh", sys.executable, str(RUNTIME)],
    "RLIMIT_AS": None,
    "RLIMIT_DATA": None,
}


@pytest.mark.parametrize("limit", LIMITS)
def test_auto_takes_the_standard_library_where_memory_is_limited(start: Start, limit: str) -> None:
    """By what starts the process, or by user code in its import."""
    source = f"""
        import resource
        def echo(message): return message["payload"]
        if {limit != "ulimit"}: resource.setrlimit(resource.{limit}, (4_000_000_000, -1))
    """
    process = start(source, argv=LIMITS[limit])
    process.logged("; JSON: standard library, because memory is limited\n")
    assert process.call({"a": 1}) == ok({"a": 1})


def test_the_standard_library_by_wish(start: Start) -> None:
    process = start(ASYA_JSON="stdlib")
    process.logged("; JSON: standard library\n")
