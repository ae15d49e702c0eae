"""The exponential moving average of the weights.

After every step each averaged value moves towards its live one: `a += (1 - d) * (w - a)`, with the decay

    d(t) = min(decay, (1 + t) / (10 + t))        t: number of the step, from 1

so that the average forgets the weights it began with: after t steps it reaches back over about t / 9 of them until that
is more than 1 / (1 - decay). (The warm-up is that of TensorFlow's ExponentialMovingAverage.)

The running statistics of batch norm are averaged likewise, not copied. They are statistics of features that the live
weights made; features of the averaged weights are, to first order, the average of those, and so are their statistics.
Those of the last weights alone would belong to a network that may have moved on, which grows with the decay.

The average lives in a network of its own, which is what validation predicts with: the live network is never touched for
it, so that whatever happens meanwhile (a signal, the watchdog, a peer that dies) finds the state of training as it is.
That takes no more memory than the average itself.
"""

import copy

import torch
from torch import Tensor

from agl_core.model.network import GeoposeNet


class Average:
    """The average of the weights and running statistics of `model`, in float32 and in `network`.

    Frozen parameters and counters are no part of it: the network has the live ones. In every process of a run it is the
    same, as the weights are.
    """

    def __init__(self, model: GeoposeNet, decay: float) -> None:
        """Begins at the present weights of `model`, whose tensors must stay the same ones from now on (see
        `RunningStatistics`, which replaces some). decay: per step, 0 to 1."""
        self.decay = decay
        self.network = copy.deepcopy(model).requires_grad_(False).eval()
        live, own = model.state_dict(), self.network.state_dict()
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        averaged = [name for name, value in live.items() if value.is_floating_point() and name not in frozen]
        copied = [name for name in live if name not in set(averaged)]
        self._tensors = {name: own[name] for name in averaged}
        self._own, self._live = [own[name] for name in averaged], [live[name] for name in averaged]
        self._copies, self._originals = [own[name] for name in copied], [live[name] for name in copied]

    def update(self, step: int) -> None:
        """Take in the live weights after step number `step`. On a GPU this queues a few kernels and waits for none."""
        torch._foreach_lerp_(self._own, self._live, 1 - decay_at(self.decay, step))

    def tensors(self) -> dict[str, Tensor]:
        """The averaged values by the names that they have in the network's state; the live ones, for a checkpoint."""
        return dict(self._tensors)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Become what `tensors` once gave, bit for bit; or begin anew at the live weights if there are none, as in a
        checkpoint of a stage that had no average. The live network has been loaded before."""
        torch._foreach_copy_(self._own, [tensors[name] for name in self._tensors] if tensors else self._live)
        self._copy()

    def restart(self) -> None:
        """Begin anew at the live weights."""
        self.load({})

    def weights(self) -> dict[str, Tensor]:
        """The complete state of a network with the average, for a weights file."""
        self._copy()
        return self.network.state_dict()

    def _copy(self) -> None:
        """Take over what is not averaged; a network without batch norm and frozen parameters has none such."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)


def decay_at(decay: float, step: int) -> float:
    """The decay of the average after step number `step`, from 1."""
    return min(decay, (1 + step) / (10 + step))
