"""What a member serves to its clients: the ports, the JSON gateway, health, metrics, version.

The data path: ``listener`` accepts and recognises the protocol -> gRPC sockets go to ``wire``; HTTP sockets to
``connections`` (Tornado) -> ``exchange`` (one request) -> ``site`` (which page or RPC) -> ``gateway`` (the RPC
handlers of ``api``, called with an exchange in the place of a gRPC connection) with ``jsonpb`` and ``gojson``, or
``pages``. ``server`` puts them together.
"""

from kvserver.web.listener import ListenError
from kvserver.web.server import WebServer

__all__ = ["ListenError", "WebServer"]
