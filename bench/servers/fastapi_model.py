"""FastAPI, one request at a time; magika's contents are the body as it is."""

import os

from fastapi import FastAPI, Request  # type: ignore[import-not-found, unused-ignore]
from pydantic import BaseModel

from bench.inference import load

app = FastAPI()
infer = load(os.environ["MODEL"], os.environ["FOREST"])


class Row(BaseModel):
    input: list[float]


@app.post("/predict")  # type: ignore[untyped-decorator, unused-ignore]
async def predict(row: Row) -> dict[str, int]:
    return {"output": infer([row.input])[0]}


@app.post("/identify")  # type: ignore[untyped-decorator, unused-ignore]
async def identify(request: Request) -> dict[str, str]:
    return {"output": infer([await request.body()])[0]}
