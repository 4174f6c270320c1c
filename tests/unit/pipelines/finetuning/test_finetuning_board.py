"""Curves for TensorBoard, where it is installed."""

from __future__ import annotations

import pytest
from made_reports import made_leg

from olmoearth_pipelines.finetuning.board import Board
from olmoearth_pipelines.finetuning.report import EpochDone


def test_every_epoch_is_a_point_of_its_rate_s_curves(tmp_path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = Board(tmp_path)
    assert not list(tmp_path.iterdir())
    for row in made_leg(1e-4).epochs:
        board.log(EpochDone(leg=1, legs=1, lr=1e-4, epochs=4, epoch=row, metric="miou", best=False))
    board.close()
    found = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = found.Scalars("rate 0.0001/loss")  # the first epoch of the leg had nothing labelled
    assert [(point.step, round(point.value, 4)) for point in losses] == [(2, 1.0), (3, 0.6667), (4, 0.5)]
    assert len(found.Scalars("rate 0.0001/miou")) == 4
