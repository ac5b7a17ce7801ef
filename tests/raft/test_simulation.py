"""Raft's invariants under seeded storms, and proof that breaking the algorithm is noticed.

``RAFT_SEEDS=first:count`` runs other seeds, as in ``RAFT_SEEDS=10000:5000 pytest tests/raft/test_simulation.py``.
A failure names its seed: ``Simulation(seed).run(STEPS)`` repeats it exactly.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvserver.raft import InvariantError
from tests.raft.mutants import MUTANTS
from tests.raft.simulation import InvariantBrokenError, Simulation

STEPS = 3000
FIRST, COUNT = (int(part) for part in os.environ.get("RAFT_SEEDS", "0:112").split(":"))
GROUPS = 4

SEEDS_PER_MUTANT = 130
NOT_BY_STORM = {
    "commits entries of earlier terms by counting",
    "confirms reads by answers to an earlier round",
}
"""Found by the scenarios of ``test_paper`` instead: the storm hits the few steps that tell too rarely."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("group", range(GROUPS))
def test_invariants_hold_in_storms_and_the_cluster_recovers_after_them(group: int) -> None:
    counts: dict[str, int] = {}
    for seed in range(FIRST + group, FIRST + COUNT, GROUPS):
        simulation = Simulation(seed)
        simulation.run(STEPS)
        simulation.heal()
        for kind, count in simulation.counts.items():
            counts[kind] = counts.get(kind, 0) + count
    runs = len(range(FIRST + group, FIRST + COUNT, GROUPS))
    # A storm in which nothing happens proves nothing.
    for kind, per_run in (
        ("leader", 2),
        ("deliver", 200),
        ("lost", 20),
        ("persisted", 50),
        ("propose", 10),
        ("read state", 5),
        ("conf", 0.1),
        ("compact", 0.5),
        ("crash", 1),
        ("partition", 1),
    ):
        assert counts.get(kind, 0) >= per_run * runs, (kind, counts)


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in NOT_BY_STORM])
def test_a_broken_core_is_found(name: str) -> None:
    for seed in range(SEEDS_PER_MUTANT):
        simulation = Simulation(seed, make_node=MUTANTS[name])
        try:
            simulation.run(STEPS)
        except (InvariantBrokenError, InvariantError):
            return
    pytest.fail(f"{name}: not found in {SEEDS_PER_MUTANT} seeds")


def test_one_seed_is_one_run_whatever_the_hash_seed() -> None:
    program = (
        "from tests.raft.simulation import Simulation\n"
        "for seed in (3, 8):\n"
        "    simulation = Simulation(seed); simulation.run(2000); print(simulation.trace, simulation.counts)\n"
    )
    root = Path(__file__).parents[2]
    outputs = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
        outputs.add(subprocess.check_output([sys.executable, "-c", program], env=environment, cwd=root))
    assert len(outputs) == 1
