"""Scenarios of the paper and the thesis that decide: a core with the bug in question gives another outcome.

The scenarios are interaction scripts; ``test_scripts`` checks that the core does what they say.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.raft.mutants import MUTANTS
from tests.raft.script import Script

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.mark.parametrize(
    ("script", "mutant"),
    [
        ("figure_8", "commits entries of earlier terms by counting"),  # paper 5.4.2, figure 8
        ("read_late_answer", "confirms reads by answers to an earlier round"),  # thesis 6.4
        ("read_index", "answers reads without confirming its leadership"),  # thesis 6.4
        ("read_before_commit_in_term", "answers reads before it committed an entry of its term"),  # thesis 6.4, step 1
        ("overwritten_write", "counts a write whose entries were overwritten meanwhile"),
        ("joint_needs_both", "takes one majority of a joint configuration for enough"),  # thesis 4.3
        ("learners", "counts a learner's acknowledgement"),  # thesis 4.2.1
        ("joint", "makes a second membership change before the first is applied"),  # thesis 4.1
    ],
)
def test_a_core_with_the_bug_gives_another_outcome(script: str, mutant: str) -> None:
    text = (SCRIPTS / f"{script}.txt").read_text()
    try:
        outcome = Script(MUTANTS[mutant]).run(text)
    except Exception as error:  # it may also break down
        outcome = repr(error)
    assert outcome != text
