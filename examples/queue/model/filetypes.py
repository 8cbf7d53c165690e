"""What kind of file some bytes are, by the model Magika. `python3 -m filetypes` serves HTTP."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from magika import Magika

PORT = 8080
magika = Magika()


def identify(messages: list[dict[str, Any]]) -> list[Any]:
    """A handler for batches: adds `type` and `group` to each file, and passes its bytes on.

    A file that fails is the result of its message alone. (Magika's function for bytes takes one
    file. A model for a GPU would make one call for all of them.)
    """
    return [try_file(message["payload"]) for message in messages]


def try_file(file: dict[str, Any]) -> dict[str, Any] | Exception:
    """The file with its type, or what is wrong with it."""
    try:
        if "data" not in file:
            raise ValueError("payload.data is missing: attach the bytes of the file")
        kind = magika.identify_bytes(bytes(file["data"])).output
    except (TypeError, ValueError) as error:
        return error
    return {**file, "type": str(kind.label), "group": kind.group}


class Page(BaseHTTPRequestHandler):
    """The image's own interface: answers a posted file with its type."""

    def do_POST(self) -> None:
        """Answer with one line."""
        data = self.rfile.read(int(self.headers["Content-Length"]))
        body = f"{magika.identify_bytes(data).output.label}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Page).serve_forever()
