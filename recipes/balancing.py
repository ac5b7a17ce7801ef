"""Choosing one instance of many. A strategy sees the instances that want calls, and remembers what it needs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from recipes.instance import Instance


class Strategy(Protocol):
    """Chooses an instance for a call."""

    def pick(self, instances: Sequence[Instance], outstanding: Mapping[str, int]) -> Instance:
        """Answer one of ``instances``, which is not empty and ordered by id.

        Args:
            instances: Those that want calls.
            outstanding: Calls under way by instance id, as counted by ``borrow()``; missing means none.
        """
        ...


class RoundRobin:
    """Each in turn; goes on after the last chosen id when instances come and go."""

    def __init__(self) -> None:
        self._last = ""

    def pick(self, instances: Sequence[Instance], outstanding: Mapping[str, int]) -> Instance:
        """Answer the next instance."""
        chosen = next((instance for instance in instances if instance.id > self._last), instances[0])
        self._last = chosen.id
        return chosen


class WeightedRandom:
    """By chance, in proportion to the weights.

    Args:
        rng: The source of chance.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng if rng is not None else random.Random()

    def pick(self, instances: Sequence[Instance], outstanding: Mapping[str, int]) -> Instance:
        """Answer an instance by chance."""
        return self._rng.choices(instances, [instance.weight for instance in instances])[0]


class LeastOutstanding:
    """The one with the fewest calls under way for its weight; equals by chance. Needs ``borrow()``.

    Args:
        rng: The source of chance.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng if rng is not None else random.Random()

    def pick(self, instances: Sequence[Instance], outstanding: Mapping[str, int]) -> Instance:
        """Answer the least busy instance."""
        loads = [(outstanding.get(instance.id, 0) + 1) / instance.weight for instance in instances]
        least = min(loads)
        return self._rng.choice([instance for instance, load in zip(instances, loads, strict=True) if load == least])
