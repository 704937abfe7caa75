"""A real `offload serve` on free ports: started from a configuration, watched, stopped, judged by its log."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from hsm.metrics import NODE_SPECS
from offload import commands, runtime
from offload.config import load
from offload.metrics import SUPERVISOR_SPECS, WORKER_SPECS
from tests.support import eventually
from tests.support.forked import run_forked
from tests.support.hsm_support import ROOT, child_environment, free_port

START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
FAULTS = (
    "Traceback (most recent call last)",
    '"event": "internal_error"',
    '"callback_failed"',
    "never retrieved",
    "UserWarning",
)
"""What no log may hold, whatever a test does to the proxy."""


def offload_command(*arguments: str) -> list[str]:
    """The command line of `offload …` in this interpreter."""
    return [sys.executable, "-m", "offload.cli", *arguments]


def run_offload(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `offload …` to its end: for what fails, or answers and ends."""
    environment = child_environment()
    return run_forked(
        "offload.cli", *arguments, environment=environment, directory=cwd, timeout=START_TIMEOUT
    )


def state_of(pid: int) -> str:
    """A process's state as proc(5) has it, such as R, S, T (stopped) or Z (zombie); X if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return stat.rpartition(")")[2].split()[0]


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return state_of(pid) not in ("Z", "X")


@contextlib.contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Processes that do nothing in this block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: all(state_of(pid) == "T" for pid in pids), "the processes stand still")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def children_of(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found


def resident_bytes(pid: int) -> int:
    """A process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Answer:
    """What the admin server answered."""

    status: int
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


_VALUES = {
    spec.name.removesuffix("_total"): spec.values for spec in (*WORKER_SPECS, *SUPERVISOR_SPECS, *NODE_SPECS)
}
_SUFFIX = re.compile(r"_(total|bucket|count|sum|created)$")
_UNNAMED_ERROR = re.compile(r"error_[0-9A-F]{2}$")


def assert_documented(name: str, labels: Mapping[str, str]) -> None:
    """Of a sample: labels that have a fixed set of values, as docs/metrics.md says, have one of those."""
    values = _VALUES.get(name) or _VALUES.get(_SUFFIX.sub("", name), {})
    for label in values.keys() & labels.keys():
        value = _UNNAMED_ERROR.sub("error_XX", labels[label])
        assert value in values[label], f"{name}: {label}={value} is not among the values of its Spec"


@functools.cache
def _series(text: str) -> tuple[str, dict[str, str]]:
    """Name and labels of what stands before a value; the same ones come in every scrape."""
    (family,) = text_string_to_metric_families(f"{text} 0\n")
    (sample,) = family.samples
    assert_documented(sample.name, sample.labels)
    return sample.name, sample.labels


class Metrics:
    """One scrape, parsed. Each label value is one that the reference of all metrics lists."""

    def __init__(self, text: str) -> None:
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        self._text = text
        self._samples = [(*_series(series), float(value)) for series, _, value in lines]

    @property
    def families(self) -> dict[str, Metric]:
        """All metrics by name, as Prometheus reads them."""
        return {family.name: family for family in text_string_to_metric_families(self._text)}

    def value(self, name: str, /, **labels: str) -> float:
        """The sum of the samples of this name that carry these labels; 0 if there are none."""
        wanted = labels.items()
        return sum(
            value for found, theirs, value in self._samples if found == name and wanted <= theirs.items()
        )

    def labels(self, name: str) -> list[dict[str, str]]:
        """The label sets of all samples of this name."""
        return [dict(labels) for found, labels, _ in self._samples if found == name]


class Program:
    """A process of `offload …` whose stderr is a file, so that nothing is lost and no reader is needed."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        """Starts it; `stdout` and `log` are in `directory`."""
        self.directory = directory
        self._log_path = directory / "stderr.log"
        self._out_path = directory / "stdout.log"
        with self._log_path.open("wb") as log, self._out_path.open("wb") as out:
            self.process = subprocess.Popen(
                offload_command(*arguments), env=child_environment(), cwd=directory,
                stdin=subprocess.DEVNULL, stdout=out, stderr=log,
            )  # fmt: skip
        self.pid = self.process.pid

    @property
    def log(self) -> str:
        """All of stderr until now."""
        return self._log_path.read_text(errors="replace")

    @property
    def output(self) -> str:
        """All of stdout until now."""
        return self._out_path.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log entries of this name, oldest first."""
        entries = [json.loads(line) for line in self.log.splitlines(keepends=True) if _is_entry(line)]
        return [entry for entry in entries if entry.get("event") == name]

    def wait_event(
        self, event: str, /, *, count: int = 1, within: float = START_TIMEOUT, **fields: object
    ) -> dict[str, Any]:
        """The log entry of this name and with these fields that came as the `count`-th; waits for it."""

        def find() -> dict[str, Any] | None:
            found = [entry for entry in self.events(event) if fields.items() <= entry.items()]
            if len(found) < count:
                assert self.process.poll() is None, f"it ended before {event!r}:\n{self.log}"
                return None
            return found[count - 1]

        try:
            return eventually(find, f"event {event} {fields or ''}", within) or {}
        except AssertionError as error:
            raise AssertionError(f"{error}; the log:\n{self.log}") from error

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, within: float = STOP_TIMEOUT) -> int:
        """Its exit code, when it has ended."""
        return self.process.wait(within)

    def kill(self) -> None:
        """End it, however it fares; its children see that and end too."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_TIMEOUT)

    def assert_clean(self) -> None:
        """Nothing in the log says that something unexpected happened."""
        log = self.log
        for fault in FAULTS:
            assert fault not in log, f"{fault} in the log:\n{log[-6000:]}"

    def stop(self) -> None:
        """SIGTERM: it drains, ends with code 0, and its log is clean."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.wait()
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise AssertionError(f"SIGTERM did not end it:\n{self.log[-6000:]}") from error
        assert code == 0, f"exit code {code}:\n{self.log[-6000:]}"
        self.assert_clean()


def _is_entry(line: str) -> bool:
    return line.startswith("{") and line.endswith("}\n")


class Proxy(Program):
    """`offload serve --config FILE`."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], admin_port: int) -> None:
        """Writes the configuration and starts it; `admin_port` is what `settings` says."""
        self.config = directory / "offload.yaml"
        self._admin_port = admin_port
        self.ports: dict[str, int] = {}
        self.write(settings)
        self._control = runtime.directory_of(load(self.config), self.config) / runtime.CONTROL_SOCKET
        super().__init__(directory, "serve", "--config", str(self.config))

    def write(self, settings: Mapping[str, Any]) -> None:
        """Replace the configuration's file; the admin address stays."""
        whole = {"admin": {"address": f"127.0.0.1:{self._admin_port}"}, **settings}
        new = self.config.with_suffix(".new")
        new.write_text(yaml.safe_dump(whole, sort_keys=False))
        new.replace(self.config)

    def command(self, operation: str, **arguments: Any) -> str:
        """What the proxy says to a command on its control socket. Raises ConfigurationError if it refuses."""
        return str(
            asyncio.run(commands.command(self._control, operation, START_TIMEOUT, **arguments))["said"]
        )

    def ready(self) -> Self:
        """Wait until it accepts; then `ports` tells each listener's."""
        entry = self.wait_event("ready")
        self.ports = {name: int(bound.rpartition(":")[2]) for name, bound in entry["listeners"].items()}
        return self

    @property
    def admin_url(self) -> str:
        """Where metrics and probes are."""
        return f"http://127.0.0.1:{self._admin_port}"

    def get(self, path: str) -> Answer:
        """GET from the admin server, whatever the status."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self._admin_port, timeout=10)
        ) as http_:
            http_.request("GET", path)
            response = http_.getresponse()
            return Answer(response.status, response.read().decode())

    def metrics(self) -> Metrics:
        """All metrics as of now."""
        answer = self.get("/metrics")
        assert answer.status == 200
        return Metrics(answer.text)

    def status(self) -> dict[str, Any]:
        """`/status`."""
        found: dict[str, Any] = self.get("/status").json
        return found

    def worker_pids(self) -> list[int]:
        """The running workers, by slot."""
        return [worker["pid"] for worker in self.status()["workers"] if worker["pid"] is not None]

    def wait_metric(self, name: str, expected: float, /, within: float = 15.0, **labels: str) -> None:
        """Wait until the sum of a metric's samples is at least `expected` (exactly, if that is 0)."""
        latest = -1.0

        def reached() -> bool:
            nonlocal latest
            latest = self.metrics().value(name, **labels)
            return latest == 0 if expected == 0 else latest >= expected

        try:
            eventually(reached, name, within)
        except AssertionError as error:
            raise AssertionError(
                f"{name}{labels} is {latest:g}, not {expected:g}, after {within:g} s"
            ) from error

    def wait_idle(self, within: float = 15.0) -> None:
        """Wait until no client connection is left."""

        def is_idle() -> bool:
            return not any(sum(worker["connections"].values()) for worker in self.status()["workers"])

        eventually(is_idle, "no connection is left", within)


@contextlib.contextmanager
def running_proxy(directory: Path, settings: Mapping[str, Any], *, ready: bool = True) -> Iterator[Proxy]:
    """A proxy that is stopped by SIGTERM at the end, with exit code 0 and a clean log asserted.

    `settings` lack `admin`: its port is chosen here. After a failure the log is printed.
    """
    with free_port() as admin_port:
        directory.mkdir(parents=True, exist_ok=True)
        proxy = Proxy(directory, settings, admin_port)
        try:
            yield proxy.ready() if ready else proxy
        except BaseException:
            proxy.kill()
            print(proxy.log[-20_000:])
            raise
        proxy.stop()


def listener(
    name: str, chains: Sequence[Path], servers: Sequence[str], *, address: str = "127.0.0.1:0", **more: Any
) -> dict[str, Any]:
    """A listener of a configuration on a free port; `more` goes beside `servers` into `upstream`."""
    return {
        "name": name,
        "address": address,
        "certificates": [{"chain": str(chain)} for chain in chains],
        "upstream": {"servers": list(servers), **more},
    }
