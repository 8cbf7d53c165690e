"""gRPC with JSON in its messages, started as in the examples of grpcio."""

import sys
from concurrent import futures

import grpc  # type: ignore[import-not-found, import-untyped, unused-ignore]
from work import answer

LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=LIMITS)
call = grpc.unary_unary_rpc_method_handler(lambda body, context: answer(body))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Actor", {"Call": call})])
server.add_insecure_port(f"unix:{sys.argv[1]}")
server.start()
server.wait_for_termination()
