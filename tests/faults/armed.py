"""``python -m kvserver`` with a crash point armed by ``KVSERVER_CRASH_POINT``."""

from __future__ import annotations

import functools
import os
import sys

from kvserver import cli, server
from kvserver.node.crash_points import CrashPoints

if __name__ == "__main__":
    points = CrashPoints(os.environ.pop("KVSERVER_CRASH_POINT", ""))
    server.Server = functools.partial(server.Server, crash_points=points)  # type: ignore[assignment,misc]
    sys.exit(cli.main())
