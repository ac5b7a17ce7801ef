"""``version``: the two lines that tools parse, naming the etcdctl this follows, and our own."""

from __future__ import annotations

from kvserver.version import ETCD_CLUSTER_VERSION, ETCD_VERSION, KVSERVER_VERSION
from recipes.ctl.invocation import Invocation


def run(invocation: Invocation) -> None:
    """Print the versions."""
    invocation.line(f"etcdctl version: {ETCD_VERSION}")
    invocation.line(f"API version: {ETCD_CLUSTER_VERSION.rpartition('.')[0]}")
    invocation.line(f"kvctl version: {KVSERVER_VERSION}")
