"""Lengths of training and the learning rate: pure functions of the step."""

import math
import re
from dataclasses import dataclass

from agl_core.config import ScheduleConfig
from agl_core.data.order import Order
from agl_core.errors import UserError


@dataclass(frozen=True)
class Span:
    """A length of training: a number of epochs or of optimiser steps."""

    count: int
    unit: str  # "epochs" or "steps"

    @staticmethod
    def parse(text: str, key: str) -> "Span":
        """Read 'N epochs' or 'N steps' (also 'N epoch', 'Nsteps'); `key` is named in the error."""
        match = re.fullmatch(r"\s*(\d+)[\s_-]*(epoch|step)s?\s*", text)
        if match is None or int(match[1]) < 1:
            raise UserError(f"{key} is {text!r}: write a length as 'N epochs' or 'N steps', N at least 1")
        return Span(int(match[1]), match[2] + "s")

    def steps(self, order: Order) -> int:
        """The least number of steps that is this long."""
        return self.count if self.unit == "steps" else order.steps(self.count)

    def due(self, step: int, order: Order) -> bool:
        """Whether something done once every such span is due after `step` steps, that is, whether the last of them
        completed a multiple of it."""
        if step < 1:
            return False
        if self.unit == "steps":
            return step % self.count == 0
        return order.epochs_done(step) // self.count > order.epochs_done(step - 1) // self.count


def learning_rate(config: ScheduleConfig, peak: float, step: int, total: int, order: Order) -> float:
    """The learning rate of optimiser step `step` (from 0) of a stage of `total` steps.

    - `cosine`: `floor + (peak - floor) / 2 * (1 + cos(pi * t))`, t from 0 to 1 over the steps after the warm-up.
    - `cosine-epochs`: the same with `t = epoch / half_period`, constant within an epoch, without restart: it rises
      again after the half period and is back at the peak after two (the recipe of the reference).
    - `flat-cosine`: the peak for the first `flat * total` steps, then as `cosine` over those that are left.
    - `one-cycle`: as `cosine`, and before it half a cosine up to the peak (L. N. Smith, "Super-Convergence", 2018, with
      cosines in place of his straight lines).
    - `constant`: the peak.

    During the first `warmup * total` steps the rate rises: from 0, linearly; `one-cycle` from `initial * peak`, by half
    a cosine. All but `cosine-epochs` and `constant` come to the floor with the end of the stage.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        if config.name == "one-cycle":
            return _half_cosine(config.initial * peak, peak, step / warmup)
        return peak * (step + 1) / warmup
    if config.name == "constant":
        return peak
    if config.name == "cosine-epochs":
        return _half_cosine(peak, config.floor, order.epochs_done(step) / config.half_period)
    begin = round(config.flat * total) if config.name == "flat-cosine" else warmup
    return _half_cosine(peak, config.floor, max(step - begin, 0) / max(total - begin, 1))


def _half_cosine(begin: float, end: float, progress: float) -> float:
    """From `begin` at progress 0 to `end` at progress 1."""
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * progress))
