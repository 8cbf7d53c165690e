"""The process: its socket file, its signals, and what user code does to it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from .conftest import (
    DEADLINE,
    RUNTIME,
    Process,
    Start,
    eventually,
    frame,
    run_to_end,
    taken,
)
from .processes import needs_namespace, pid_1_of, state_of
from .served import write_files

SLOW = """
    import os, time
    def slow(message):
        open("in-handler", "a").close()
        end = time.monotonic() + message["payload"].get("seconds", 0)
        while time.monotonic() < end: time.sleep(0.01)
        return 1
"""
IN_C = "__import__('hashlib').pbkdf2_hmac('md5', b'', b'', 10**9)"  # minutes, deaf to signals
ONE = {"status": "ok", "result": 1}


def in_handler(process: Process) -> None:
    eventually((process.folder / "in-handler").exists, "the handler's call")


def left(folder: Path) -> list[str]:
    return sorted(
        p.name for p in folder.iterdir() if p.name not in ("app.py", "log", "__pycache__")
    )


# --- the socket file -------------------------------------------------------------------


def test_the_socket_appears_only_when_the_handler_is_imported(start: Start, folder: Path) -> None:
    source = """
        import os, pathlib, time
        pathlib.Path("importing").touch()
        while not os.path.exists("go"): time.sleep(0.01)
        def echo(message): return 1
    """
    process = start(source, ready=False)
    eventually((folder / "importing").exists, "import")
    assert not process.socket.exists()
    (folder / "go").touch()
    assert process.ready().call({}) == ONE


@pytest.mark.parametrize(
    ("setting", "mode"),
    [({}, 0o660), ({"ASYA_SOCKET_MODE": "0666"}, 0o666)],
    ids=["default", "set"],
)
def test_the_socket_has_the_mode_that_was_asked_for(
    start: Start, setting: dict[str, str], mode: int
) -> None:
    assert start(**setting).socket.stat().st_mode & 0o7777 == mode


def test_a_stale_socket_and_leftovers_of_killed_starts_are_replaced(
    start: Start, folder: Path
) -> None:
    first = start()
    first.logged("serving")  # comes after the socket
    first.popen.kill()
    first.wait()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / ".asya-0000"))
    assert first.socket.exists()
    process = start(ready=False)
    eventually(lambda: process.log().count("serving") == 2, "second start")
    assert process.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}
    assert left(folder) == ["app.sock"]


def refused(process: Process, text: str) -> None:
    assert process.wait() == 78
    lines = process.log().splitlines()
    assert text in lines[-1]
    assert lines[-1].startswith("asya_runtime: ")


def test_a_live_socket_is_not_stolen(start: Start) -> None:
    first = start()
    first.logged("serving")  # comes after the socket, and would come last
    refused(start(ready=False), "another process is serving")
    assert first.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}


def test_a_live_socket_with_a_full_backlog_is_not_stolen(start: Start, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(folder / "app.sock"))
        busy.listen(0)
        client.connect(str(folder / "app.sock"))
        refused(start(ready=False), "another process is serving")


def test_a_directory_or_a_file_in_the_sockets_place_stays(start: Start, folder: Path) -> None:
    path = folder / "app.sock"
    path.write_text("precious")
    refused(start(ready=False), "exists and is not a socket; refusing to replace it")
    assert path.read_text() == "precious"
    path.unlink()
    path.mkdir()
    refused(start(ready=False), "exists and is not a socket; refusing to replace it")
    assert path.is_dir()


def test_a_file_that_comes_during_the_import_stays(start: Start, folder: Path) -> None:
    source = """
        open("app.sock", "w").close()
        def echo(message): pass
    """
    refused(start(source, ready=False), "exists and is not a socket; refusing to replace it")
    assert left(folder) == ["app.sock"]


def test_a_missing_parent_is_made(start: Start, folder: Path) -> None:
    path = folder / "a" / "b" / "app.sock"
    assert start(ASYA_SOCKET_PATH=str(path)).call({}) == {"status": "ok", "result": {}}


def test_a_parent_that_cannot_be_made_is_one_readable_line(start: Start, folder: Path) -> None:
    process = start(ready=False, ASYA_SOCKET_PATH="/proc/asya/app.sock")
    refused(process, "asya_runtime: socket directory /proc/asya: No such file or directory")


def test_a_path_of_107_bytes_is_served(start: Start, folder: Path) -> None:
    path = folder / ("d" * (107 - len(str(folder)) - 1 - len("/a"))) / "a"
    assert len(str(path)) == 107
    assert start(ASYA_SOCKET_PATH=str(path)).call({}) == {"status": "ok", "result": {}}


# --- signals ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_ends_an_idle_process_with_0_and_its_socket(
    start: Start, folder: Path, number: signal.Signals
) -> None:
    process = start()
    client = process.client()
    process.signal(number)
    assert process.wait() == 0
    assert client.at_end()
    assert left(folder) == []


@pytest.mark.parametrize(
    "wait",
    ["time.sleep(60)", IN_C],
    ids=["python", "c"],
)
def test_sigterm_while_importing_ends_at_once(start: Start, folder: Path, wait: str) -> None:
    process = start(f"import time\nopen('importing', 'w').close()\n{wait}", ready=False)
    eventually((folder / "importing").exists, "import")
    process.signal()
    assert process.wait() == 0
    assert left(folder) == ["importing"]


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_sigterm_in_mid_message_answers_what_was_sent_and_exits_0(
    start: Start, folder: Path, concurrency: str
) -> None:
    process = start(SLOW, "app.slow", ASYA_CONCURRENCY=concurrency)
    first, second, third = process.client(), process.client(), process.client()
    first.send(frame({"payload": {"seconds": 0.5}}) + frame({"payload": {}}) * 20)
    in_handler(process)
    second.send(frame({"payload": {}}))
    process.signal()
    assert [first.reply() for _ in range(21)] == [ONE] * 21
    assert second.reply() == ONE
    assert third.at_end()
    assert process.wait() == 0
    assert left(folder) == ["in-handler"]


def test_sigterm_answers_what_waits_in_the_backlog(start: Start) -> None:
    process = start(SLOW, "app.slow")
    process.client().send(frame({"payload": {"seconds": 0.4}}))
    in_handler(process)
    waiting = [process.client() for _ in range(20)]
    for client in waiting:
        client.send(frame({"payload": {}}))
    process.signal()
    assert [client.reply() for client in waiting] == [ONE] * 20
    assert process.wait() == 0


def test_a_process_that_waits_for_its_last_call_uses_no_processor(start: Start) -> None:
    source = """
        import os, time
        def predict(message):
            while os.path.exists(os.environ["ASYA_SOCKET_PATH"]): time.sleep(0.01)
            before = time.process_time()
            time.sleep(1)
            return time.process_time() - before
    """
    process = start(source, "app.predict", ASYA_CONCURRENCY="2")
    client = process.client()
    client.send(frame({"payload": {}}))
    taken(client)
    process.signal()
    assert client.reply()["result"] < 0.04
    assert process.wait() == 0


def test_a_client_in_a_closed_loop_cannot_hold_up_the_end(start: Start) -> None:
    process = start()
    client = process.client()
    client.call({"payload": {}})
    process.signal()
    with pytest.raises((BrokenPipeError, ConnectionResetError, EOFError)):  # noqa: PT012
        while True:
            client.call({"payload": {}})
    assert process.wait() == 0


def test_a_peer_that_never_reads_cannot_hold_up_the_end(start: Start) -> None:
    process = start("def big(message): return 'x' * 5_000_000", "app.big")
    client = process.client()
    client.send(frame({"payload": {}}) * 3)
    client.exactly(100)
    process.signal()
    assert process.wait() == 0


@pytest.mark.parametrize(
    "busy",
    ["while time.monotonic() < end: pass", IN_C],
    ids=["python", "c"],
)
def test_a_second_sigterm_exits_143_at_once(start: Start, busy: str) -> None:
    source = f"""
        import time
        def slow(message):
            open("in-handler", "a").close()
            end = time.monotonic() + 60
            {busy}
    """
    process = start(source, "app.slow")
    process.client().send(frame({"payload": {}}))
    in_handler(process)
    process.signal()
    process.signal_taken()  # two signals at the same instant are one
    process.signal()
    assert process.wait() == 143


def test_an_import_that_takes_the_signals_does_not_keep_them(start: Start) -> None:
    source = """
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        def echo(message):
            signal.set_wakeup_fd(-1)
            return 1
    """
    process = start(source)
    assert process.call({}) == ONE
    process.signal()
    assert process.wait() == 0


@needs_namespace
def test_it_works_as_pid_1(start: Start) -> None:
    argv = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, str(RUNTIME)]
    process = start("import os\ndef echo(m): return os.getppid()", argv=argv)
    assert process.call({}) == ONE  # the parent is: it reaps orphans
    os.kill(pid_1_of(process), signal.SIGTERM)
    assert process.wait() == 0


# --- user code -------------------------------------------------------------------------


def test_a_default_time_limit_of_user_code_does_not_reach_our_connections(start: Start) -> None:
    source = """
        import socket
        socket.setdefaulttimeout(0.05)
        def echo(message): return 1
    """
    client = start(source).client()
    assert client.call({"payload": {}}) == ONE
    time.sleep(0.2)  # four times its limit
    assert client.call({"payload": {}}) == ONE


def test_user_code_that_replaces_the_classes_of_sockets_does_not_reach_ours(start: Start) -> None:
    source = """
        import socket
        class Other(socket.socket):  # as gevent's and eventlet's patches do
            def recv(self, *args): raise RuntimeError("somebody else's socket")
            recv_into = send = sendmsg = setblocking = recv
        socket.socket = socket.SocketType = Other
        def echo(message): return 1
    """
    assert start(source).client().call({"payload": {}}) == ONE


def test_prints_do_not_go_to_a_client_after_user_code_closed_fd_1(start: Start) -> None:
    source = """
        import os
        os.close(1)
        def echo(message):
            try: os.close(1)
            except OSError: pass
            try: os.close(2)
            except OSError: pass
            os.write(1, b"secret") if message["payload"] else None
            return 1
    """
    process = start(source)
    process.call({})
    for _ in range(3):
        client = process.client()
        assert [client.call({"payload": {}}), client.call({"payload": {"a": 1}})][0] == ONE
        client.close()


def test_a_connection_that_came_as_fd_1_ends_with_its_last_reply(start: Start) -> None:
    process = start("""
        import os
        def echo(message): os.close(1)
    """)
    process.call({})
    client = process.client()
    client.send(b"half")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.reply()["error"] == "connection_error"
    assert client.at_end()


def test_a_handler_that_used_up_all_file_descriptors_has_its_traceback_logged(start: Start) -> None:
    process = start("""
        import os, resource
        def echo(message):
            resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
            while True: os.open(os.devnull, os.O_RDONLY)
    """)
    assert process.call({})["type"] == "OSError"
    process.logged("in echo")


def test_a_forked_child_keeps_nothing_of_the_server(start: Start, folder: Path) -> None:
    source = """
        import os, signal, time
        def fork(message):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            return pid
    """
    process = start(source, "app.fork")
    client = process.client()
    child = client.call({"payload": {}})["result"]
    process.popen.kill()
    process.wait()
    assert client.at_end()
    with pytest.raises(ConnectionRefusedError):
        process.client()
    os.kill(child, signal.SIGTERM)  # which ends it: our handler is gone from it
    eventually(lambda: state_of(child) in ("", "Z"), "the end of the child")


def test_the_end_of_a_forked_child_by_signal_does_not_end_the_server(start: Start) -> None:
    source = """
        import multiprocessing, time
        def fork(message):
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            child.start()
            child.terminate()
            child.join(10)
            return child.exitcode
    """
    process = start(source, "app.fork")
    assert [process.call({}) for _ in range(3)] == [{"status": "ok", "result": -15}] * 3


@pytest.mark.parametrize("way", ["return 2", "raise SystemExit(0)", "1/0"])
def test_a_forked_child_that_comes_back_answers_nobody(start: Start, way: str) -> None:
    source = f"""
        import os
        def fork(message):
            pid = os.fork()
            if pid == 0:
                {way}
            os.waitpid(pid, 0)
            return 1
    """
    process = start(source, "app.fork")
    client = process.client()
    assert [client.call({"payload": {}}) for _ in range(3)] == [ONE] * 3
    assert process.call({}) == ONE  # the socket is still there


def test_threads_of_user_code_do_not_keep_the_process(start: Start) -> None:
    source = """
        import threading, time
        threading.Thread(target=time.sleep, args=(600,)).start()
        def echo(message): return 1
    """
    process = start(source)
    process.signal()
    assert process.wait() == 0


def test_lines_are_in_the_log_before_the_reply_is_here(start: Start) -> None:
    process = start("def echo(message): print('hello from user code')")
    process.call({})
    assert "hello from user code" in process.log()


@pytest.mark.parametrize(
    "more",
    ["", "threading.Thread(target=time.sleep, args=(600,)).start()"],
    ids=["alone", "with-threads-left"],
)
def test_prints_without_newline_are_in_the_log_at_the_end(start: Start, more: str) -> None:
    source = f"""
        import threading, time
        {more}
        def echo(message): print("no newline", end="")
    """
    process = start(source)
    process.call({})
    process.signal()
    assert process.wait() == 0
    assert "no newline" in process.log()


def test_the_main_thread_is_where_module_and_handler_run(start: Start) -> None:
    source = """
        import asyncio, contextvars, signal, sqlite3, threading
        memory = sqlite3.connect(":memory:")
        count = contextvars.ContextVar("count")
        count.set(0)
        async def answer(): return 42
        def echo(message):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            count.set(count.get() + 1)
            number = memory.execute("select 1").fetchone()[0]
            main = threading.current_thread() is threading.main_thread()
            return [number, count.get(), asyncio.run(answer()), main]
    """
    client = start(source).client()
    assert [client.call({"payload": {}})["result"] for _ in range(2)] == [
        [1, 1, 42, True],
        [1, 2, 42, True],
    ]


def test_a_raised_recursion_limit_does_not_let_deep_json_crash(python: str, start: Start) -> None:
    source = """
        import sys
        sys.setrecursionlimit(10**7)
        def deep(message):
            if "limit" in message["payload"]: return sys.getrecursionlimit()
            if "in" in message["payload"]: return 1
            x = []
            for _ in range(300000): x = [x]
            return x
    """
    for concurrency in ("1", "2"):
        process = start(source, "app.deep", python=python, ASYA_CONCURRENCY=concurrency)
        client = process.client()
        deep = b'{"payload":{"in":' + b"[" * 300000 + b"]" * 300000 + b"}}"
        assert client.call(deep)["error"] == "invalid_json"
        assert client.call({"payload": {}})["type"] == "RecursionError"
        assert client.call({"payload": {"in": 1}}) == ONE
        assert client.call({"payload": {"limit": 1}})["result"] == 10**7
        process.end()
        process.socket.unlink()


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_slow_call_is_warned_about_once_while_it_runs(
    start: Start, folder: Path, concurrency: str
) -> None:
    """No other call is slow, on the busiest machine: the clock of the process stands still."""
    clock = """
        import time
        now, turns = [1000.0], [0]
        def monotonic():
            turns[0] += 1
            return now[0]
        time.monotonic = monotonic
    """
    source = """
        import time
        from sitecustomize import now, turns
        def predict(message):
            said = []
            for seconds in message["payload"].get("seconds", ()):
                now[0] += seconds
                enough = turns[0] + 2
                while turns[0] < enough: time.sleep(0.01)  # the watch has had a whole turn
                said += [line for line in open("log") if "running" in line][len(said):]
            return said
    """
    write_files(folder, {"clock/sitecustomize.py": clock})
    process = start(
        source,
        "app.predict",
        ASYA_HANDLER_TIMEOUT="0.2",
        ASYA_CONCURRENCY=concurrency,
        PYTHONPATH=str(folder / "clock"),
    )
    client, quick = process.client(), {"status": "ok", "result": []}
    for _ in range(20):
        assert client.call({"payload": {}}) == quick
    slow = client.call({"payload": {"seconds": [0.125, 0.25, 0.5, 0.5]}})
    line = "asya_runtime: the handler is still running after 0.375 s\n"
    assert slow == {"status": "ok", "result": [line]}
    assert client.call({"payload": {}}) == quick
    assert process.log().count("still running") == 1


def test_calls_run_side_by_side_with_concurrency(start: Start) -> None:
    source = """
        import threading
        meet = threading.Barrier(4)
        def together(message):
            meet.wait(10)
            return 1
    """
    process = start(source, "app.together", ASYA_CONCURRENCY="4")
    clients = [process.client() for _ in range(4)]
    for _ in range(3):
        for client in clients:
            client.send(frame({"payload": {}}))
        assert [client.reply() for client in clients] == [ONE] * 4


def test_no_more_calls_at_once_than_concurrency(start: Start) -> None:
    source = """
        import threading, time
        lock, running, most, all_run = threading.Lock(), [], [0], threading.Event()
        def count(message):
            with lock:
                running.append(1)
                most[0] = max(most[0], len(running))
                if len(running) == 3: all_run.set()
            all_run.wait(20)
            time.sleep(0.01)
            with lock: running.pop()
            return most[0]
    """
    process = start(source, "app.count", ASYA_CONCURRENCY="3")
    clients = [process.client() for _ in range(20)]
    for client in clients:
        client.send(frame({"payload": {}}))
    assert max(client.reply()["result"] for client in clients) == 3


# --- commands --------------------------------------------------------------------------


def command(folder: Path, *arguments: str, stdin: bytes = b"", **environ: str) -> tuple[int, str]:
    argv = [sys.executable, "-I", "-S", str(RUNTIME), *arguments]
    return run_to_end(argv, folder, stdin=stdin, **environ)


def test_check_refuses_what_the_server_would_refuse(folder: Path) -> None:
    (folder / "app.py").write_text("def echo(message): pass")
    (folder / "orjson.py").write_text("raise ImportError")
    reason = "orjson is not installed; install it or set ASYA_JSON=auto"
    line = f"asya_runtime: ASYA_JSON=orjson: {reason}\n"
    got = command(folder, "--check", ASYA_HANDLER="app.echo", ASYA_JSON="orjson")
    assert got == (78, line)


def test_call_sends_one_message_and_prints_the_reply(start: Start, folder: Path) -> None:
    assert command(folder, "--call")[0] == 1
    start()
    (folder / "message.json").write_text('{"payload": {"a": 1}}')
    good = (0, '{"status":"ok","result":{"a":1}}\n')
    assert command(folder, "--call", "message.json") == good
    assert command(folder, "--call", stdin=b'{"payload": {"a": 1}}') == good
    status, output = command(folder, "--call", stdin=b"nonsense")
    assert (status, output[:42]) == (1, '{"status":"error","error":"invalid_json","')
    assert command(folder, "--call", "no-such-file")[0] == 1


def test_call_sends_files_and_saves_what_the_reply_has_attached(start: Start, folder: Path) -> None:
    source = """
        def echo(message):
            payload = message["payload"]
            if "deep" in payload: return {"../../etc/x y": [payload["deep"], b"", {"": b"e"}]}
            return bytes(payload["a"]) + b"!"
    """
    start(source)
    (folder / "one").write_bytes(b"\0\1\2")
    (folder / "message.json").write_text(
        '{"payload": {"a": {"$bytes": 0}, "b": "{\\"$bytes\\":1}"}}'
    )
    call = ["--call", "message.json", "--attach", "one"]
    text = '{"status":"ok","result":{"$bytes":4}}\n'
    hint = "asya_runtime: the reply has 1 attachments, 4 bytes; --save DIR writes them to files\n"
    assert command(folder, *call) == (0, text + hint)
    saved = "asya_runtime: saved out/1-result, 4 bytes\n"
    assert command(folder, *call, "--save", "out") == (0, text + saved)
    assert (folder / "out" / "1-result").read_bytes() == b"\0\1\2!"
    exists = "asya_runtime: out/1-result: the file exists and is not overwritten; "
    assert command(folder, *call, "--save", "out") == (
        1,
        text + exists + "choose another directory\n",
    )
    body = b'{"payload": {"deep": { "$bytes" : "of any kind" }}}'
    status, output = command(folder, "--call", "--save", "deep", "--attach", "one", stdin=body)
    names = ["1-.._.._etc_x_y.0", "2-.._.._etc_x_y.1", "3-.._.._etc_x_y.2."]
    assert (status, sorted(path.name for path in (folder / "deep").iterdir())) == (0, names)
    assert [(folder / "deep" / name).read_bytes() for name in names] == [b"\0\1\2", b"", b"e"]
    body = b'{"payload": {"a": "text"}}'
    status, output = command(folder, "--call", "--save", "none", stdin=body)
    assert (status, '"error":"processing_error"' in output) == (1, True)


REFUSED_CALLS: dict[str, tuple[list[str], str]] = {
    "too-few-places": (
        ["--attach", "one", "one"],
        'the message has 1 objects {"$bytes": 0}, and --attach names 2 files; '
        "write one object in each file's place",
    ),
    "too-many-places": (
        ["--save", "out"],
        'the message has 1 objects {"$bytes": 0}, and --attach names 0 files; '
        "write one object in each file's place",
    ),
    "no-file": (["--attach", "none"], "none: No such file or directory"),
    "a-directory": (["--attach", "."], ".: Is a directory"),
    "over-the-limit": (
        ["--attach", "huge", "one"],
        "a message of 4294967332 bytes exceeds the limit of a frame, 4294967295 bytes; "
        "send less at once",
    ),
    "a-file-in-place-of-the-directory": (["--attach", "one", "--save", "one"], "one: File exists"),
}


@pytest.mark.parametrize(("words", "line"), REFUSED_CALLS.values(), ids=REFUSED_CALLS)
def test_what_call_cannot_send_or_save_is_one_line(
    folder: Path, words: list[str], line: str
) -> None:
    (folder / "one").write_bytes(b"123")
    with (folder / "huge").open("wb") as huge:
        huge.truncate(4294967296)  # of which nothing is on the disk, nor read
    (folder / "message.json").write_text('{"payload": {"a": {"$bytes": 0}}}')
    assert command(folder, "--call", "message.json", *words) == (1, f"asya_runtime: {line}\n")


DRIP = b"without end"
PEERS: dict[str, tuple[bytes | None, int, str]] = {
    "escapes": (
        frame(b'{"status":"ok","result":"\x1b[31m\xc2\x9b\xe2\x80\xae\r\n\x7f\xff\xc3\xa4"}'),
        0,
        '{"status":"ok","result":"\\u001b[31m\\u009b\\u202e\\u000d\\u000a\\u007f\\xffä"}\n',
    ),
    "other-bytes": (
        frame(b'{"status":"ok","result":{"$bytes":5}}\0abc'),
        1,
        '{"status":"ok","result":{"$bytes":5}}\n'
        "asya_runtime: the reply has other bytes than its JSON announces\n",
    ),
    "nothing": (b"", 1, "asya_runtime: {path}: connection closed with no reply\n"),
    "half": (b"\0\0\0\x09abc", 1, "asya_runtime: {path}: connection closed with 3 of 9 bytes\n"),
    "a byte at a time": (
        DRIP,
        1,
        "asya_runtime: {path}: no complete reply within 0.3 s; --timeout sets another limit\n",
    ),
    "silence": (
        None,
        1,
        "asya_runtime: {path}: no complete reply within 0.3 s; --timeout sets another limit\n",
    ),
}


@pytest.mark.parametrize(("sent", "status", "output"), PEERS.values(), ids=PEERS)
def test_call_trusts_no_peer(folder: Path, sent: bytes | None, status: int, output: str) -> None:
    path = folder / "app.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(BrokenPipeError):  # the other side may have given up
                peer.recv(4096)  # prefix and body come together
                if sent is DRIP:
                    peer.sendall(b"\0\xff\xff\xff")
                    while True:
                        peer.sendall(b"x")
                        time.sleep(0.02)
                peer.sendall(b"\0\0\0\x09" if sent is None else sent)
                while sent is None and peer.recv(4096):  # until the other side gives up
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        seconds = "0.3" if sent in (None, DRIP) else "20"
        got = command(folder, "--call", "--timeout", seconds, stdin=b"{}")
        thread.join(DEADLINE)
    assert got == (status, output.replace("{path}", str(path)))


def test_call_waits_for_a_full_backlog_no_longer_than_its_limit(folder: Path) -> None:
    path = folder / "app.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        got = command(folder, "--call", "--timeout", "0.3", stdin=b"{}")
    line = f"{path}: no complete reply within 0.3 s; --timeout sets another limit"
    assert got == (1, f"asya_runtime: {line}\n")


def test_a_wrong_timeout_of_call_is_one_line(folder: Path) -> None:
    rule = "must be a number of seconds, above 0, at most 86400"
    for text in ("0", "x", "86401", "inf"):
        got = command(folder, "--call", "--timeout", text)
        assert got == (78, f"asya_runtime: --timeout {text}: {rule}\n")


def test_texts_of_others_are_cut_and_escaped_in_the_log(start: Start) -> None:
    source = r"""
        X = "x" * 99999
        class Long(Exception): pass
        Long.__name__ = Long.__qualname__ = "Long\nasya_runtime: forged by a name\x1b" + X
        def predict(message):
            kind, text = message["payload"]["kind"], message["payload"]["text"]
            if kind == "name": raise Long(text)
            if kind == "memory": raise type("A\nasya_runtime: forged" + X, (MemoryError,), {})(text)
            if kind == "key": return {text: {1}}
            raise ValueError(text)
    """
    process = start(source, "app.predict")
    client = process.client()
    marks = "\x1b]0;title\x07\x1b[2J\x7f\x9b\r\u2028\u202e\ud800"
    for text in (marks, "a\nasya_runtime: forged by a text", "x" * 99999, marks * 9999):
        for kind in ("value", "key", "name", "memory"):
            reply = client.call({"payload": {"kind": kind, "text": text}})
            assert reply["status"] == "error"
            assert (len(reply["type"]) <= 200, len(reply["message"]) <= 2000) == (True, True)
    log = process.log_file.read_bytes().decode("utf-8")
    own = [line for line in log.split("\n") if line.startswith("asya_runtime: ")]
    assert [line for line in own if line[14:].startswith("forged")] == []
    assert len(own) == 1 + 4 * 4
    assert [line for line in log.split("\n") if not line.isprintable()] == []
    assert max(map(len, log.split("\n"))) < 70_000  # 10,000 characters, escaped
    assert r"\u001b]0;title\u0007\u001b[2J\u007f\u009b\u000d\u2028\u202e\ud800" in log


def test_check_imports_the_handler_and_serves_nothing(folder: Path) -> None:
    (folder / "app.py").write_text("def echo(message): pass")
    good = (0, "asya_runtime: app.echo can be served\n")
    assert command(folder, "--check", ASYA_HANDLER="app.echo") == good
    assert command(folder, "--check", ASYA_HANDLER="app.ecko") == (
        78,
        "asya_runtime: app has no ecko; it has echo\n",
    )
    assert left(folder) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["--ready", "x"],
        ["--call", "a", "b"],
        ["--call", "--save"],
        ["--call", "a", "--attach"],
        ["--call", "--nonsense"],
    ],
)
def test_a_wrong_command_line_is_answered_with_the_usage(
    folder: Path, arguments: list[str]
) -> None:
    status, output = command(folder, *arguments)
    assert (status, output[:22]) == (64, "usage: asya_runtime.py")


def test_the_handlers_import_does_not_see_our_arguments(folder: Path) -> None:
    source = "import argparse\nargparse.ArgumentParser().parse_args()\ndef echo(message): pass"
    (folder / "app.py").write_text(source)
    good = (0, "asya_runtime: app.echo can be served\n")
    assert command(folder, "--check", ASYA_HANDLER="app.echo") == good
