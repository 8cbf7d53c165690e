"""The function behind the web application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from whichlang.detector import Detector

NAMES = {
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "it": "Italian",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "sv": "Swedish",
}
CORPUS = Path(__file__).parent / "corpus"

detector = Detector({code: (CORPUS / f"{code}.txt").read_text("utf-8") for code in NAMES})


def predict(request: dict[str, Any]) -> dict[str, Any]:
    """Answer `{"payload": {"text": ...}}`; ValueError without a text."""
    text = request["payload"].get("text")
    if not isinstance(text, str) or not any(map(str.isalpha, text)):
        raise ValueError("payload.text must be a text with at least one letter")
    code, probability = next(iter(detector.detect(text).items()))
    return {"code": code, "language": NAMES[code], "probability": round(probability, 3)}
