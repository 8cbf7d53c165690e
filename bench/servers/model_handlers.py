"""The handlers of the runtime: one for batches, and one without."""

import os
from typing import Any

from bench.inference import load

infer = load(os.environ["MODEL"], os.environ["FOREST"])


def predict(message: dict[str, Any]) -> Any:
    return infer([message["payload"]["input"]])[0]


def predict_batch(messages: list[dict[str, Any]]) -> list[Any]:
    return infer([message["payload"]["input"] for message in messages])
