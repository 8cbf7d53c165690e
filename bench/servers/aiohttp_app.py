"""aiohttp, as in its documentation; messages of any size."""

import sys

from aiohttp import web
from work import reply


async def endpoint(request: web.Request) -> web.Response:
    return web.json_response(reply(await request.json()))


app = web.Application(client_max_size=2**32)
app.router.add_post("/", endpoint)
web.run_app(app, path=sys.argv[1], print=None, access_log=None)
