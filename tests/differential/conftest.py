"""The two servers of the differential suite, one of each for the whole run.

``DIFFERENTIAL_OURS=genuine`` compares genuine etcd with itself, which shows that everything that has to differ is
masked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.differential.harness import Pair, Side
from tests.support.etcd import GenuineEtcd
from tests.support.processes import NodeProcess


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """Both servers, running."""
    kind = GenuineEtcd if os.environ.get("DIFFERENTIAL_OURS") == "genuine" else NodeProcess
    with GenuineEtcd() as genuine, kind() as ours:
        both = Pair(Side("ours", ours), Side("genuine", genuine))
        yield both
        both.close()
