"""The demo's application really tells languages apart, in texts it has never seen."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

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
def test_a_sentence_it_has_never_seen_is_recognised(
    service: ModuleType, code: str, text: str
) -> None:
    assert service.predict({"payload": {"text": text}})["code"] == code


def test_probabilities_add_up_to_one_and_the_best_comes_first(service: ModuleType) -> None:
    found = service.detector.detect("muito obrigado")
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert set(found) == set(service.NAMES)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param({}, id="missing"),
        pytest.param({"text": 5}, id="a number"),
        pytest.param({"text": ""}, id="empty"),
        pytest.param({"text": "42 :-)"}, id="without a letter"),
    ],
)
def test_what_is_no_text_is_refused(service: ModuleType, payload: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least one letter"):
        service.predict({"payload": payload})


def test_the_demos_messages_are_not_what_it_was_trained_on(
    service: ModuleType, examples: Path
) -> None:
    corpus = " ".join(file.read_text("utf-8") for file in service.CORPUS.iterdir())
    for line in (examples / "messages.jsonl").read_text("utf-8").splitlines():
        text = json.loads(line)["payload"].get("text")
        assert text is None or text not in corpus
