"""A harness for testing code that uses the recipes: a node in the process, and faults on demand.

In a pytest suite, ``pytest_plugins = ["recipes.testing.plugin"]`` brings the fixtures ``kv_node`` and ``kv``. Nothing
here sleeps: faults are real ones (a revoked lease, a cut connection, a compacted history), caused at the moment they
are asked for. This package may import the server; no other part of the recipes does.
"""

from recipes.testing.faults import compact, drop_connection, expire_session, pause_session, resume_session
from recipes.testing.node import EmbeddedNode
from recipes.testing.proxy import FaultProxy

__all__ = [
    "EmbeddedNode",
    "FaultProxy",
    "compact",
    "drop_connection",
    "expire_session",
    "pause_session",
    "resume_session",
]
