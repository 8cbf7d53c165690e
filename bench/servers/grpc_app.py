"""gRPC with JSON as its messages, as grpcio's examples start a server; messages of any size."""

from __future__ import annotations

import sys
from concurrent import futures

import grpc  # type: ignore[import-not-found, import-untyped, unused-ignore]
from work import answer

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=OPTIONS)
call = grpc.unary_unary_rpc_method_handler(lambda body, context: answer(body))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Actor", {"Call": call})])
server.add_insecure_port(f"unix:{sys.argv[1]}")
server.start()
server.wait_for_termination()
