"""A node answers the recorded requests as etcd 3.5.1 did: status, headers and bodies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from kvserver.config import Config, address_of
from kvserver.server import Server
from tests.web.steps import RECORDED, STEPS, comparable, run_step


async def answers_of_a_node(directory: Path) -> list[dict[str, object]]:
    config = Config(
        data_dir=str(directory / "data"),
        listen_client_urls=("http://127.0.0.1:0",),
        advertise_client_urls=("http://127.0.0.1:1",),
    )
    async with Server(config) as server:
        address = address_of(server.client_url)

        def run_all() -> list[dict[str, object]]:
            return [run_step((address.host, address.port), step) for step in STEPS]

        return await asyncio.to_thread(run_all)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return asyncio.run(answers_of_a_node(tmp_path_factory.mktemp("node")))


RECORDED_ANSWERS: list[dict[str, object]] = json.loads(RECORDED.read_text())


def test_the_recording_belongs_to_the_steps() -> None:
    assert len(RECORDED_ANSWERS) == len(STEPS)


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_the_answer_is_etcds(number: int, answers: list[dict[str, object]]) -> None:
    step = STEPS[number]
    assert comparable(answers[number]) == comparable(RECORDED_ANSWERS[number]), f"{step.method} {step.path} {step.body}"
