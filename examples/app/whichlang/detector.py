"""Language identification: naive Bayes over the character sequences of each language.

A text is split into its sequences of one to three characters. Training counts them per language. A
new text belongs to the language in which its sequences are most probable.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

# The count of sequences that do not occur in the corpus of a language.
UNSEEN = 0.1


class Detector:
    """Trained on one text per language; `detect` gives each language's probability."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        counts = {language: Counter(sequences(text)) for language, text in texts.items()}
        vocabulary = {sequence for counter in counts.values() for sequence in counter}
        self._seen: dict[str, dict[str, float]] = {}
        self._unseen: dict[str, float] = {}
        for language, counter in counts.items():
            total = sum(counter.values()) + UNSEEN * len(vocabulary)
            self._seen[language] = {s: math.log((n + UNSEEN) / total) for s, n in counter.items()}
            self._unseen[language] = math.log(UNSEEN / total)

    def detect(self, text: str) -> dict[str, float]:
        """Probabilities of all languages, the most probable first; they add up to 1."""
        wanted = list(sequences(text))
        score = {
            language: math.fsum(seen.get(s, self._unseen[language]) for s in wanted)
            for language, seen in self._seen.items()
        }
        best = max(score.values())
        weight = {language: math.exp(value - best) for language, value in score.items()}
        total = math.fsum(weight.values())
        ranked = sorted(weight, key=lambda language: -weight[language])
        return {language: weight[language] / total for language in ranked}


def sequences(text: str) -> Iterator[str]:
    """The sequences of one to three characters in each word; a space marks its ends."""
    for word in re.findall(r"[^\W\d_]+", text.lower()):
        padded = f" {word} "
        for length in (1, 2, 3):
            for start in range(len(padded) - length + 1):
                yield padded[start : start + length]
