"""HTTP/2 and gRPC, both roles.

* ``frames``, ``faults``, ``limits``, ``messages``, ``headers``: numbers and builders of frames, errors by blame,
  bounds, gRPC's framing, HPACK.
* ``machine`` and on it ``server_machine``, ``client_machine``: the protocol without I/O. They import no asyncio, socket
  or clock.
* ``server`` and ``client``: thin asyncio shells; what other packages import.

Nothing is re-exported here, so that importing a machine does not import asyncio.
"""
