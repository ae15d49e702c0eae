"""Small complete states for the tests of this folder."""

import torch

from agl_core.durable.checkpoint import Checkpoint


def state(step: int, **flags: bool) -> Checkpoint:
    """A state that differs from that of any other step in every tensor."""
    flat = torch.arange(6.0) + step
    model = {"weight": flat[:4].view(2, 2).t(), "running_mean": flat[4:], "count": torch.tensor(step)}
    return Checkpoint(step, model, {"step/weight": torch.tensor(float(step))}, {"best_score": step / 3, **flags})


def equal(first: Checkpoint | None, second: Checkpoint | None) -> bool:
    """Bit-equal, with the dtypes and the shapes."""
    if first is None or second is None:
        return first is second
    return (first.step, first.state) == (second.step, second.state) and all(
        a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
        for a, b in ((first.model, second.model), (first.optimizer, second.optimizer))
    )
