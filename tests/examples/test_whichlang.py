"""The demo's application recognizes languages, in texts that are not in its corpus."""

import importlib
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest


@pytest.fixture
def service() -> ModuleType:
    return importlib.import_module("whichlang.service")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("de", "Habe nun, ach! Philosophie, Juristerei und Medizin durchaus studiert."),
        ("en", "Call me Ishmael. Some years ago, never mind how long precisely."),
        ("es", "Muchos años después, frente al pelotón de fusilamiento, había de recordar."),
        ("fi", "Jukolan talo, eteläisessä Hämeessä, seisoo erään mäen rinteellä."),
        ("fr", "Heureux qui, comme Ulysse, a fait un beau voyage."),
        ("it", "Quel ramo del lago di Como, che volge a mezzogiorno."),
        ("nl", "Ik ben makelaar in koffie, en woon op de Lauriergracht."),
        ("pl", "Dziękuję bardzo, do widzenia."),
        ("pt", "Amor é fogo que arde sem se ver; é ferida que dói e não se sente."),
        ("sv", "Det var en afton i början av maj."),
    ],
)
def test_the_language_of_a_new_sentence_is_recognized(
    service: ModuleType, code: str, text: str
) -> None:
    assert service.predict({"payload": {"text": text}})["code"] == code


def test_probabilities_add_up_to_one_and_the_best_comes_first(service: ModuleType) -> None:
    result = service.detector.detect("muito obrigado")
    assert sum(result.values()) == pytest.approx(1)
    assert list(result.values()) == sorted(result.values(), reverse=True)
    assert set(result) == set(service.NAMES)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({}, id="missing"),
        pytest.param({"text": 5}, id="a number"),
        pytest.param({"text": ""}, id="empty"),
        pytest.param({"text": "42 :-)"}, id="without a letter"),
    ],
)
def test_a_payload_without_text_is_an_error(service: ModuleType, payload: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one letter"):
        service.predict({"payload": payload})


def test_the_demos_messages_are_not_in_the_corpus(service: ModuleType, examples: Path) -> None:
    corpus = " ".join(file.read_text("utf-8") for file in service.CORPUS.iterdir())
    for line in (examples / "messages.jsonl").read_text("utf-8").splitlines():
        text = json.loads(line)["payload"].get("text")
        assert text is None or text not in corpus


@pytest.fixture
def server() -> Iterator[str]:
    """The web application on a free port; yields its address."""
    handler = importlib.import_module("whichlang.__main__").Handler
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(100)


@pytest.mark.parametrize(
    ("path", "body", "status", "answer"),
    [
        pytest.param("/", None, 200, "<p></p>", id="the empty form"),
        pytest.param("/?text=Goedemorgen,+dag!", None, 200, "<p>Dutch</p>", id="the page's answer"),
        pytest.param("/?text=%3Cb%3E", None, 200, 'value="&lt;b&gt;"', id="text is escaped"),
        pytest.param("/?text=42", None, 200, "at least one letter", id="no text on the page"),
        pytest.param("/other", None, 404, "not found", id="no such page"),
        pytest.param(
            "/predict", {"payload": {"text": "Guten Tag!"}}, 200, '"language": "German"', id="JSON"
        ),
        pytest.param("/predict", {"payload": {}}, 400, '{"error": "payload.text', id="no text"),
        pytest.param("/predict", [], 400, '{"error": ', id="no request"),
        pytest.param("/other", {}, 404, "not found", id="no such path"),
    ],
)
def test_the_web_application_answers(
    server: str, path: str, body: Any, status: int, answer: str
) -> None:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(server + path, data, timeout=100) as response:
            got = response.status, response.read().decode()
    except HTTPError as error:
        with error:
            got = error.code, error.read().decode()
    assert got[0] == status
    assert answer in got[1]
