"""gRPC with JSON in its messages, or with plain bytes, started as in the examples of grpcio.

grpc_app.py SOCKET [bytes]
"""

import sys
from concurrent import futures

import grpc  # type: ignore[import-not-found, import-untyped, unused-ignore]
from work import answer

LIMITS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
server = grpc.server(futures.ThreadPoolExecutor(max_workers=16), options=LIMITS)
respond = bytes if "bytes" in sys.argv else answer
call = grpc.unary_unary_rpc_method_handler(lambda body, context: respond(body))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Actor", {"Call": call})])
server.add_insecure_port(f"unix:{sys.argv[1]}")
server.start()
server.wait_for_termination()
