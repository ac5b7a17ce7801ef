"""``defrag``."""

from __future__ import annotations

from kvserver.proto import rpc_pb2
from recipes.ctl.endpoint import cluster_endpoints
from recipes.ctl.exits import EXIT_ERROR, CommandError
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import CallError


def run(invocation: Invocation) -> None:
    """Ask each endpoint to give back the space it does not use."""
    directory = invocation.flags.text("data-dir")
    if directory:
        reason = "only running members can be defragmented: omit --data-dir"
        invocation.complain(f"Failed to defragment etcd data[{directory}] ({reason})")
        raise CommandError(EXIT_ERROR, None)
    client = invocation.client()
    failed = False
    for endpoint in cluster_endpoints(invocation):
        one = client.only(endpoint)
        try:
            one.call(
                "Maintenance/Defragment",
                rpc_pb2.DefragmentRequest(),
                rpc_pb2.DefragmentResponse,
                invocation.timeout,
            )
            invocation.line(f"Finished defragmenting etcd member[{endpoint}]")
        except CallError as error:
            failed = True
            invocation.complain(f"Failed to defragment etcd member[{endpoint}] ({error})")
        finally:
            one.close()
    if failed:
        raise CommandError(EXIT_ERROR, None)
