"""``python -m tests.faults``: the long forms of the fault tests.

python -m tests.faults --rounds 20        kill -9 under writers, twenty times
python -m tests.faults --power            every crash point of recorded runs, none left out
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from kvserver.node.crash_points import NAMES
from tests.faults.campaign import Campaign, Round
from tests.faults.power import try_crash_points
from tests.faults.test_kill import ArmedNode


def say(number: int, how: str, done: Round) -> None:
    """One line a round."""
    print(
        f"round {number:3}  {how:<30} {done.acknowledged:6} acknowledged  {done.unknown:3} unknown  "
        f"revision {done.revision:7}  all there",
        flush=True,
    )


def kill_rounds(rounds: int, writers: int, acknowledged_min: int, seed: int) -> None:
    """Kill one node again and again, now and then at a crash point."""
    with Campaign(ArmedNode(args=["--snapshot-count=500"]), writers=writers, seed=seed) as campaign:
        for number in range(1, rounds + 1):
            if number % 5 == 0:
                point = (
                    f"{NAMES[number // 5 % len(NAMES)]}:{1 if 'snapshot' in NAMES[number // 5 % len(NAMES)] else 50}"
                )
                campaign.crash_rounds([point])
                say(number, f"died at {point}", campaign.rounds[-1])
            else:
                say(number, "kill -9", campaign.kill_round(acknowledged_min))
        calls = sum(done.acknowledged for done in campaign.rounds)
        unknown = sum(done.unknown for done in campaign.rounds)
        print(
            f"{rounds} rounds: {calls} calls acknowledged, {unknown} of unknown outcome, {len(campaign.log)} events in "
            f"the log, watchers resumed {min(watcher.resumptions for watcher in campaign.watchers)} times: nothing "
            "lost, nothing twice, revisions never went back"
        )


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=0, help="rounds of kill -9 under writers")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--acknowledged", type=int, default=500, help="calls answered before each kill")
    parser.add_argument("--power", action="store_true", help="every crash point of recorded runs")
    parser.add_argument("--runs", type=int, default=5, help="recorded runs for --power")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000, help="printed, for another run like it")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    if options.rounds or not options.power:
        kill_rounds(options.rounds or 20, options.writers, options.acknowledged, options.seed)
    if options.power:
        logging.disable(logging.CRITICAL)
        for seed in range(options.seed, options.seed + options.runs):
            tried = try_crash_points(seed, steps=60, sample=None)
            print(
                f"run {seed}: {tried.images} power losses recovered to a durable prefix, {tried.lost_something} of "
                f"them lost unsynced writes; {tried.snapshots} snapshots, {tried.segments_released} segments released",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
