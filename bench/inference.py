"""The models: each is a function from a list of inputs to the list of their results."""

import base64
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

Infer = Callable[[list[Any]], list[Any]]


def train_forest(path: str) -> None:
    """A forest of 100 trees for 30 features, always the same."""
    from sklearn.datasets import make_classification  # type: ignore[import-not-found, unused-ignore]
    from sklearn.ensemble import RandomForestClassifier  # type: ignore[import-not-found, unused-ignore]

    rows, classes = make_classification(2000, 30, n_informative=12, n_classes=4, random_state=0)
    forest = RandomForestClassifier(100, random_state=0).fit(rows, classes)
    Path(path).write_bytes(pickle.dumps(forest))


def load(model: str, path: str) -> Infer:
    """The forest of a file, magika, or an echo; magika's inputs are base64 or bytes."""
    if model == "forest":
        forest = pickle.loads(Path(path).read_bytes())
        return lambda rows: list(forest.predict(rows).tolist())
    if model == "magika":
        from magika import Magika  # type: ignore[import-not-found, unused-ignore]

        identify = Magika().identify_bytes
        return lambda contents: [
            str(identify(each if isinstance(each, bytes) else base64.b64decode(each)).output.label)
            for each in contents
        ]
    return lambda inputs: inputs
