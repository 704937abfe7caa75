"""Commands of ours without the price of their start: forked off a process that has imported all they need.

To import that anew takes a third to two thirds of a second of CPU each time. Everything else is as if the
command line had been run: arguments, environment, working directory, files, exit code. Tests of the start
itself, and of what a service manager or a terminal does with a command, run the real one.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from hsm.start import importing

_USED = {
    "hsm.cli": (
        "hsm.bench",
        "hsm.cluster_config",
        "hsm.doctor",
        "hsm.issue",
        "hsm.node.generate",
        "hsm.node.main",
    ),
    "offload.cli": ("offload.check", "offload.commands", "offload.probe", "offload.show"),
}
"""What commands of a program import when they are run."""


def run_forked(
    program: str, *arguments: str, environment: Mapping[str, str], directory: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `python -m program …` to its end, its output captured. Raises subprocess.TimeoutExpired."""
    return _warm(program).run(list(arguments), environment, directory, timeout)


@functools.cache
def _warm(program: str) -> _Warm:
    return _Warm(program)


class _Warm:
    """The process that has imported a program; it ends with this one."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked", program],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        atexit.register(self._process.communicate)

    def run(
        self, arguments: list[str], environment: Mapping[str, str], directory: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """One command, when the ones before have ended."""
        command = [sys.executable, "-m", self._program, *arguments]
        with tempfile.TemporaryDirectory() as place, self._turn:
            assert self._process.stdin is not None
            order = {"command": command, "environment": dict(environment), "in": str(directory), "to": place}
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            pid = self._told(timeout)
            assert pid is not None, "no process is forked off"
            code = self._told(timeout)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                self._told(timeout)
                raise subprocess.TimeoutExpired(command, timeout)
            output, errors = (Path(place, name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(command, code, output, errors)

    def _told(self, timeout: float) -> int | None:
        """The next number that it says; None if there is none in time."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        return int(self._process.stdout.readline()) if ready else None


def _serve(program: str) -> None:
    """Fork off a command for each line of standard input; tell its process id, and then its exit code."""
    with importing():
        for name in (program, *_USED[program]):
            importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(program, json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(program: str, order: dict[str, Any]) -> NoReturn:
    """Be the command, from its start to its end."""
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["in"])
    writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path, flags in ((0, "/dev/null", os.O_RDONLY), (1, "out", writing), (2, "err", writing)):
        opened = os.open(os.path.join(order["to"], path), flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.orig_argv = order["command"]
    sys.argv = [importlib.import_module(program).__file__ or "", *order["command"][3:]]
    try:
        importlib.import_module(program).main()
        code: object = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)  # the interpreter's own end would take 0.15 s


if __name__ == "__main__":
    _serve(sys.argv[1])
