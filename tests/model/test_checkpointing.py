"""Gradient checkpointing costs time and changes no bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agl_core.errors import UserError
from agl_core.model.encoders import timm
from agl_core.model.network import GeoposeNet
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.parallel import Parallel
from tests.model.networks import BATCH, small, some_loss

ENCODERS = ["tu-tf_efficientnetv2_b0", "tu-resnet10t", "tu-convnext_atto"]
"""Both ways in which timm takes features out of a model, with batch norms and without."""


def randomly_dropping(encoder: str, on: bool) -> GeoposeNet:
    """A network whose encoder draws random numbers in every block that can drop its path."""
    model = small(encoder=encoder)
    for block in model.encoder.modules():
        if hasattr(block, "drop_path"):
            block.drop_path = timm.layers.DropPath(0.5)
    model.set_gradient_checkpointing(on)
    return model.train()


def trained(model: GeoposeNet) -> dict[str, Tensor]:
    """The state after two steps of two micro-batches, as the trainer takes them."""
    statistics = RunningStatistics(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        for number in range(2):
            torch.manual_seed(10 * step + number)
            some_loss(model(*BATCH)).backward()
            statistics.add_forward()
        statistics.reduce(Parallel())
        optimizer.step()
        statistics.finish_step(2)
    return {name: value.clone() for name, value in model.state_dict().items()}


def kept(model: GeoposeNet) -> int:
    """How many numbers a forward pass keeps for the backward pass."""
    numbers = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal numbers
        numbers += tensor.numel()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(*BATCH)
    return numbers


@pytest.mark.parametrize("encoder", ENCODERS)
def test_steps_are_the_same_bits_with_it_and_keep_less(encoder: str) -> None:
    plain, sparing = randomly_dropping(encoder, False), randomly_dropping(encoder, True)
    assert kept(sparing) < kept(plain)
    initial = {name: value.clone() for name, value in plain.state_dict().items()}
    expected, found = trained(plain), trained(sparing)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    moved = [name for name in expected if not torch.equal(expected[name], initial[name])]
    assert any("encoder" in name and "weight" in name for name in moved)
    assert any("encoder" in name and "running_mean" in name for name in moved) or "convnext" in encoder


def test_paths_that_are_dropped_are_the_same_in_both_passes() -> None:
    """Without it two runs that begin with the same number would agree only by chance."""
    model = randomly_dropping("tu-tf_efficientnetv2_b0", True)
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(model(*BATCH).agl)
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_it_can_be_switched_off_again() -> None:
    model = small(encoder="tu-resnet10t").train()
    before = kept(model)
    model.set_gradient_checkpointing(True)
    assert model.gradient_checkpointing
    assert kept(model) < before
    assert model.has_gradient_checkpointing  # asking changes nothing
    assert kept(model) < before
    model.set_gradient_checkpointing(False)
    assert kept(model) == before
    assert model.has_gradient_checkpointing
    assert kept(model) == before


@pytest.mark.parametrize("encoder", ["resnet18", "efficientnet-b0", "timm-efficientnet-b0", "tu-hrnet_w18_small"])
def test_encoders_without_it_refuse_in_one_sentence_and_train_on(encoder: str) -> None:
    model: Any = small(encoder=encoder)
    assert not model.has_gradient_checkpointing
    with pytest.raises(UserError, match=rf"encoder '{encoder}' has no gradient checkpointing: take one of timm .*tu-"):
        model.set_gradient_checkpointing(True)
    model.set_gradient_checkpointing(False)
    assert not model.gradient_checkpointing
