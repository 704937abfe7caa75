"""Many command lines of `hsm` at the price of one: for those that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.hsm_support import LIMIT, child_environment

_RUN_EACH = """
import json, os, sys, tempfile
import hsm.issue, hsm.node.admin, hsm.node.main
from hsm.cli import app
from hsm.start import importing

def start(arguments):
    output = tempfile.TemporaryFile()
    child = os.fork()
    if not child:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            app(arguments)
        except SystemExit as ended:
            sys.stderr.flush()
            os._exit(ended.code)  # the interpreter's own end would take 0.15 s
    return child, output

def end(child, output):
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output.seek(0)
    return code, output.read().decode()

with importing():
    started = [start(arguments) for arguments in json.load(sys.stdin)]
json.dump([end(*each) for each in started], sys.stdout)
"""


def run_each_hsm(command_lines: list[list[str]], directory: Path) -> list[tuple[int, str]]:
    """Exit code and output of each `hsm …`, run at once in processes that import `hsm` only once."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN_EACH],
        input=json.dumps(command_lines),
        env=child_environment(),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    return [(code, output) for code, output in json.loads(done.stdout)]
