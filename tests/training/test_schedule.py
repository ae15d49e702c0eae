import math

import pytest
import torch

from agl_core.config import ScheduleConfig
from agl_core.data.order import Order
from agl_core.errors import UserError
from agl_core.training.schedule import Span, learning_rate

ORDER = Order(0, 0, n_samples=10, global_batch=4)  # epochs end after 2.5, 5, 7.5, 10 steps


def test_spans_are_read_as_people_write_them() -> None:
    assert Span.parse("3 epochs", "length") == Span.parse("3epoch", "length") == Span(3, "epochs")
    assert Span.parse("1 step", "length") == Span.parse("1-steps", "length") == Span(1, "steps")
    for wrong in ("", "3", "epochs", "0 steps", "-1 steps", "1.5 epochs", "3 hours"):
        with pytest.raises(UserError, match=r"stages\.a\.length is .*'N epochs' or 'N steps'"):
            Span.parse(wrong, "stages.a.length")


def test_a_span_of_epochs_is_due_at_the_step_that_completes_it() -> None:
    assert [step for step in range(12) if Span(1, "epochs").due(step, ORDER)] == [3, 5, 8, 10]
    assert [step for step in range(12) if Span(2, "epochs").due(step, ORDER)] == [5, 10]
    assert [step for step in range(12) if Span(4, "steps").due(step, ORDER)] == [4, 8]
    assert Span(2, "epochs").steps(ORDER) == 5
    assert Span(7, "steps").steps(ORDER) == 7


def test_a_batch_larger_than_the_data_completes_several_epochs_at_once() -> None:
    order = Order(0, 0, n_samples=3, global_batch=8)
    assert all(Span(2, "epochs").due(step, order) for step in range(1, 9))


def test_the_references_cosine_is_pytorchs_annealing_per_epoch_and_ends_at_the_floor() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=25, eta_min=1e-6)
    config = ScheduleConfig(name="cosine-epochs", half_period=25, floor=1e-6)
    order = Order(0, 0, n_samples=8, global_batch=4)
    for epoch in range(526):
        ours = learning_rate(config, 1e-4, epoch * 2, 1052, order)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        assert ours == learning_rate(config, 1e-4, epoch * 2 + 1, 1052, order)
        optimizer.step()
        theirs.step()
    assert ours == pytest.approx(1e-6)


def test_warm_up_rises_to_the_peak_and_one_cosine_falls_to_the_floor() -> None:
    config = ScheduleConfig(name="cosine", warmup=0.1, floor=1e-5)
    rates = [learning_rate(config, 1e-2, step, 100, ORDER) for step in range(101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[9] == rates[10] == 1e-2
    assert rates[55] == pytest.approx(1e-5 + (1e-2 - 1e-5) / 2 * (1 + math.cos(math.pi / 2)))
    assert rates[100] == pytest.approx(1e-5)
    assert learning_rate(ScheduleConfig(name="constant"), 0.5, 99, 100, ORDER) == 0.5
