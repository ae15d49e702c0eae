"""The losses of a run, from the step to its events."""

from pathlib import Path
from typing import Any

import pytest
import torch

from agl_core.config import LossConfig
from agl_core.durable.chain import StepEntry, read_chains
from agl_core.model.losses import PARTS
from tests.training.faults import kinds, small
from tests.training.runs import train


def test_the_length_of_the_flow_is_told_only_where_it_has_a_weight(tiny_store: Path, tmp_path: Path) -> None:
    for name, weight in (("without", 0.0), ("with", 0.5)):
        config = small(tiny_store, steps=2)
        config.stages["first"].loss = LossConfig(magnitude=weight)
        history = train(config, tmp_path / name)
        (chain,) = read_chains(tmp_path / name, "first")
        recorded = [entry.losses for entry in chain if isinstance(entry, StepEntry)]
        assert [[float.fromhex(loss) for loss in losses] for losses in recorded] == [losses for _, losses in history]
        for event, (step, losses) in zip(kinds(tmp_path / name, "step"), history, strict=True):
            told = dict(zip(PARTS, losses, strict=True))
            assert event["step"] == step
            assert event["loss"] == told["total"]
            assert [event[f"{part}_loss"] for part in PARTS[1:4]] == [told[part] for part in PARTS[1:4]]
            assert event.get("magnitude_loss") == (told["magnitude"] if weight else None)
            weighted = 2 * told["agl"] + 50 * told["direction"] + 50 * told["scale"] + weight * told["magnitude"]
            assert told["total"] == pytest.approx(weighted, rel=1e-5)
            assert (told["magnitude"] > 0) == (weight > 0)


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(agl_kind="huber", direction_kind="cosine", magnitude=0.1),
        LossConfig(agl_kind="r2", direction_kind="cosine"),
    ],
    ids=lambda loss: loss.agl_kind,
)
def test_a_run_with_another_loss_has_the_same_bits_after_an_interruption(
    tiny_store: Path, tmp_path: Path, loss: LossConfig
) -> None:
    config: Any = small(tiny_store, steps=3)
    config.stages["first"].loss = loss
    whole = train(config, tmp_path / "whole")
    first = train(config, tmp_path / "torn", stop_after=2)
    rest = train(config, tmp_path / "torn")
    assert first == whole[:2]
    assert rest == whole[1:]
    assert all(torch.tensor(losses).isfinite().all() for _, losses in whole)
