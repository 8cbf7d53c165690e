"""BentoML with adaptive batches."""

import os
from typing import Any

import bentoml  # type: ignore[import-not-found, unused-ignore]

from bench.inference import load


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Service:
    def __init__(self) -> None:
        self.infer = load(os.environ["MODEL"], os.environ["FOREST"])

    @bentoml.api(batchable=True, max_batch_size=128)  # type: ignore[untyped-decorator, unused-ignore]
    def predict(self, inputs: list[Any]) -> list[Any]:
        return self.infer(inputs)
