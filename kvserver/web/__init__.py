"""What a member serves to its clients: the ports, the JSON gateway, health, metrics, version.

The data path: ``listener`` accepts and recognises the protocol -> gRPC sockets go to ``wire``, HTTP sockets to
``connections``: plain requests are read and answered on the bare socket (``direct``), all others by Tornado ->
``exchange`` (one request and its answer) -> ``site`` (which page or RPC) -> ``pages``, or ``gateway``: the RPC
handlers of ``api``, called with an exchange in the place of a gRPC connection, between ``jsonpb`` and ``gojson``.
``server`` puts them together.
"""

from kvserver.web.listener import ListenError
from kvserver.web.server import WebServer

__all__ = ["ListenError", "WebServer"]
