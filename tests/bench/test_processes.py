"""Servers of several processes are measured and stopped as a whole."""

import os
import select
import sys
from pathlib import Path

from bench.processes import process_tree, running

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], start_new_session=True)
time.sleep(60)
"""
CHILD = "import os, time; open({path!r}, 'w').write(str(os.getpid())); time.sleep(60)"


def test_children_belong_to_their_server_and_end_with_it(tmp_path: Path) -> None:
    path = tmp_path / "child"
    command = [sys.executable, "-c", PARENT, "server", CHILD.format(path=str(path))]

    def is_ready() -> bool:
        return path.exists() and path.read_text() != ""

    with running(command, {}, is_ready, "server") as (pid, _):
        pids = process_tree(pid)
        assert pids == [pid, int(path.read_text())]
        child = os.pidfd_open(pids[1])
    ended, _, _ = select.select([child], [], [], 30)
    os.close(child)
    assert ended == [child]
