"""All methods of all services, by path: what the gRPC server is made with."""

from __future__ import annotations

from kvserver.api import auth, cluster, election, health, kv, lease, lock, maintenance, watch
from kvserver.node.service import NodeService
from kvserver.wire.server import StreamMethod, UnaryMethod


def build_methods(node: NodeService) -> dict[bytes, UnaryMethod | StreamMethod]:
    """Answer the methods of every service over one node.

    Args:
        node: the facade of the member that serves them.
    """
    return {
        **kv.methods(node),
        **watch.methods(node),
        **lease.methods(node),
        **cluster.methods(node),
        **maintenance.methods(node),
        **auth.methods(node),
        **lock.methods(node),
        **election.methods(node),
        **health.methods(node),
    }
