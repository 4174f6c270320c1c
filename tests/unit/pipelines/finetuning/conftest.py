"""Models and ways to train on windows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_windows import SMALL, Memory, make_request, make_source

from olmoearth_cli.core.model import OlmoEarthModel, random_model
from olmoearth_pipelines.finetune import Recipe, Said, TrainReport, train_on
from olmoearth_pipelines.finetuning.setup import Plan, make_plan


@pytest.fixture(scope="session")
def nano() -> OlmoEarthModel:
    return random_model("v1.2-nano", 0)


@pytest.fixture(scope="session")
def small() -> OlmoEarthModel:
    return random_model(SMALL, 0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Train = Callable[..., tuple[TrainReport, list[Any]]]


@pytest.fixture
def source() -> Callable[..., Memory]:
    return make_source


@pytest.fixture
def plan_of(tmp_path: Path) -> Callable[..., Plan]:
    def plan(source: Memory, model: OlmoEarthModel, recipe: Recipe | None = None, **more: Any) -> Plan:
        return make_plan(source, model, make_request(tmp_path / "run", recipe or Recipe(), **more))

    return plan


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train; gives the report and everything that was yielded or said."""

    def run(
        data: Memory,
        model: OlmoEarthModel,
        recipe: Recipe,
        *,
        out: Path | None = None,
        start: str = "made",
        **more: Any,
    ) -> tuple[TrainReport, list[Any]]:
        request = make_request(out or tmp_path / "run", recipe, model=start, **more)
        seen: list[Any] = []
        seen.extend(train_on(make_plan(data, model, request), request, Said(seen.append, seen.append)))
        return seen[-1], seen

    return run
