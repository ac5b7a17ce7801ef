"""Runs the tour, or one role of it when the tour starts this module as a process of its own."""

from __future__ import annotations

import asyncio
import sys

from examples.demo import roles, tour

if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(roles.play(*sys.argv[1:]))
    else:
        sys.exit(tour.main())
