"""Starlette, as in its documentation."""

from starlette.applications import Starlette  # type: ignore[import-not-found, unused-ignore]
from starlette.requests import Request  # type: ignore[import-not-found, unused-ignore]
from starlette.responses import JSONResponse  # type: ignore[import-not-found, unused-ignore]
from starlette.routing import Route  # type: ignore[import-not-found, unused-ignore]
from work import reply


async def endpoint(request: Request) -> JSONResponse:
    return JSONResponse(reply(await request.json()))


app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
