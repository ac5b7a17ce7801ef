"""``python -m kvserver`` is the ``kvserver`` command."""

from __future__ import annotations

import sys

from kvserver.cli import main

if __name__ == "__main__":
    sys.exit(main())
