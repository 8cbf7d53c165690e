"""Fuzz, in a short form: whatever the bytes, each complete frame has its reply."""

from __future__ import annotations

import json
import os
import random
import socket

from .conftest import Start, frame

FRAMES = int(os.environ.get("FUZZ_FRAMES", "4000"))
SEED = int(os.environ.get("FUZZ_SEED", "20"))
SAMPLES = [
    b'{"payload":{}}',
    b'{"payload":{"a":[1,2.5,-3e9,null,true,"\\ud83d\\ude00"]},"id":"x"}',
    json.dumps({"payload": {"text": "ä" * 300}}, ensure_ascii=False).encode(),
    b"[" * 500 + b"]" * 500,
    b'{"payload":{"n":1e400}}',
]


def mutated(random: random.Random) -> bytes:
    body = bytearray(random.choice(SAMPLES))
    for _ in range(random.randrange(6)):
        at = random.randrange(len(body) + 1)
        match random.randrange(4):
            case 0:
                body[at : at + 1] = random.randbytes(1)
            case 1:
                body[at:at] = random.randbytes(random.randrange(5))
            case 2:
                del body[at : at + random.randrange(9)]
            case 3:
                body[at:at] = body[: random.randrange(40)]
    return bytes(body)


def test_each_mutated_frame_gets_one_reply_in_its_turn(start: Start) -> None:
    """Between mutated frames go numbered ones: a lost or a doubled reply would shift them."""
    process = start("def echo(message): return message['payload'].get('n')")
    chance = random.Random(SEED)
    for first in range(0, FRAMES, 500):
        client = process.client()
        for n in range(first, min(first + 500, FRAMES), 10):
            bodies = [mutated(chance) for _ in range(9)] + [b'{"payload":{"n":"mark %d"}}' % n]
            data = b"".join(frame(body) for body in bodies)
            while data:
                size = chance.choice([1, 3, 4, 5, 100, 5000])
                client.send(data[:size])
                data = data[size:]
            replies = [client.reply() for _ in bodies]
            assert replies[-1] == {"status": "ok", "result": f"mark {n}"}, (SEED, n)
            assert {reply.get("error") for reply in replies} <= {
                None, "invalid_json", "processing_error"
            }, (SEED, n)  # fmt: skip
        client.close()


def test_streams_of_garbage_never_hurt_the_next_connection(start: Start) -> None:
    process = start(ASYA_MAX_MESSAGE_SIZE="100000")
    chance = random.Random(SEED)
    for n in range(FRAMES // 20):
        client = process.client()
        data = chance.randbytes(chance.randrange(3000))
        if n % 2:  # small lengths, so that garbage makes frames
            data = b"".join(
                b"\x00\x00\x00" + data[i : i + chance.randrange(20)] for i in range(0, 300, 20)
            )
        try:
            client.send(data)
            client.sock.shutdown(socket.SHUT_WR)
            while client.sock.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was given up while we were still at it
        client.close()
    assert process.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}
