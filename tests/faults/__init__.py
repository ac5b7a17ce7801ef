"""Faults: what a node does when it is killed, its disk is full or damaged, or the power goes.

- ``checker`` judges a recorded history by revision, with a model of its own;
- ``client`` and ``campaign`` make such histories with real processes, a foreign client and ``kill -9``;
- ``member`` runs a whole member, without asyncio, on the simulated disk, where every crash point can be tried.

The suite runs short forms; ``python -m tests.faults --help`` runs longer ones.
"""
