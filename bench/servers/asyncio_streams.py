"""asyncio's streams, with the frames of the runtime."""

import asyncio
import sys

from work import answer


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            reply = answer(await reader.readexactly(size))
            writer.write(len(reply).to_bytes(4, "big") + reply)
            await writer.drain()
    except asyncio.IncompleteReadError:
        writer.close()


async def main(path: str) -> None:
    server = await asyncio.start_unix_server(serve, path)
    await server.serve_forever()


asyncio.run(main(sys.argv[1]))
