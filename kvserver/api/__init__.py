"""The gRPC services: decode, check, call the node's facade, answer.

One module a service. A handler knows nothing but the facade (``kvserver.node.service``), the messages and the
connection it answers on, of which it uses ``respond`` and ``fail`` (unary) or ``send``, ``finish`` and
``buffered_bytes`` (streams): whatever offers these can drive the same methods. What a request may not be is checked
here, as etcd does before it proposes anything; what depends on the state is decided where the state is.

What must not live here: state that outlives a call (but for open streams), knowledge of Raft, disks or HTTP/2.
"""

from kvserver.api.methods import build_methods

__all__ = ["build_methods"]
