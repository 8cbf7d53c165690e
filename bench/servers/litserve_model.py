"""LitServe with batches: litserve_model.py PORT BATCH_SIZE."""

import os
import sys
from typing import Any

import litserve  # type: ignore[import-not-found, unused-ignore]

from bench.inference import load


class Api(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    def setup(self, device: str) -> None:
        self.infer = load(os.environ["MODEL"], os.environ["FOREST"])

    def decode_request(self, request: dict[str, Any], **_: Any) -> Any:
        return request["input"]

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any], **_: Any) -> list[Any]:
        return self.infer(inputs)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any, **_: Any) -> dict[str, Any]:
        return {"output": output}


if __name__ == "__main__":
    port, batch_size = map(int, sys.argv[1:])
    api = Api(max_batch_size=batch_size, batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", devices=1)
    server.run("127.0.0.1", port, log_level="error", generate_client_file=False, access_log=False)
