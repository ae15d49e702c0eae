"""What a stage tells the user: the lines it prints, its events and its scalars."""

import time
from typing import Any

from agl_core.data.order import Order
from agl_core.model.losses import PARTS
from agl_core.reporting.events import EventLog
from agl_core.reporting.live.seen import VALIDATING
from agl_core.reporting.live.view import LiveView
from agl_core.reporting.tensorboard.scalars import Scalars
from agl_core.scoring.score import Score
from agl_core.training.validation import Scores


class Journal:
    """The one place where the first process of a stage writes to; silent in the others.

    Nothing here ever ends a run: what a full disk refuses, or cannot be written, is lost, and said once.
    """

    def __init__(
        self,
        stage: str,
        order: Order,
        events: EventLog,
        scalars: Scalars,
        view: LiveView,
        magnitude: bool = False,
    ) -> None:
        """magnitude: whether the loss has this part."""
        self._stage, self._order = stage, order
        self._losses = ["loss", *(f"{part}_loss" for part in PARTS[1:] if part != "magnitude" or magnitude)]
        self._events, self._scalars, self._view = events, scalars, view
        self._refused = False

    def event(self, kind: str, step: int, **values: Any) -> None:
        """One line of events.jsonl, and what TensorBoard and the view show of it."""
        self._try(lambda: self._events.write(kind, step=step, **values))
        self._try(lambda: self._scalars.take(kind, step=step, **values))
        self._show(kind, step, values)

    def note(self, text: str) -> None:
        """One line for the user that stays."""
        self._view.note(f"{self._stage}: {text}")

    def warn(self, step: int, text: str) -> None:
        """Something that is not as it should be, while training goes on."""
        self.note(f"warning: {text}")
        self.event("warning", step, text=text)

    def advance(self, step: int) -> None:
        """`step` is done."""
        self._view.advance(step)

    def step(
        self,
        step: int,
        losses: list[float],
        lr: float,
        rate: float,
        data_wait: float,
        seconds: float,
        waited: float,
    ) -> None:
        """The losses of a step, as `PARTS` names them. rate: crops per second since the start of this process;
        data_wait: the share of the time since the last such line that steps have waited for data, 0 to 1; seconds,
        waited: that time, of the steps alone, and what of it was waiting for data."""
        parts = dict(zip(self._losses, losses, strict=False))  # magnitude is the last of `PARTS`
        values = {**parts, "lr": lr, "crops_per_second": rate, "data_wait": round(data_wait, 4)}
        times = {"seconds": round(seconds, 4), "waited": round(waited, 4)}
        self.event("step", step, epoch=self._order.epochs_done(step), **values, **times)

    def validating(self, step: int) -> None:
        """The held-out fold is about to be scored, which takes a while."""
        self._show(VALIDATING, step, {})

    def validation(self, step: int, scores: Scores, seconds: float) -> None:
        """The scores of the held-out fold."""
        epoch = self._order.epochs_done(step)
        found = scores.raw.as_json()
        told = f"step {step}, score {_in_words(scores.raw)}"
        if scores.average is not None:
            found |= _prefixed(scores.average.as_json())
            told += f", average {_in_words(scores.average)}"
        self.event("validation", step, epoch=epoch, seconds=round(seconds, 3), **found)
        self.note(told)

    def _show(self, kind: str, step: int, values: dict[str, Any]) -> None:
        self._view.event({"time": time.time(), "kind": kind, "stage": self._stage, "step": step, **values})

    def _try(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # a full disk, damaged files, a value that cannot be written: none is worth a run
            if not self._refused:
                self._refused = True
                self.note(
                    f"warning: events and scalars cannot be written ({_told(error)}); training goes on without them"
                )


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def _prefixed(values: dict[str, Any]) -> dict[str, Any]:
    """What is said of the average of the weights, by names of its own."""
    return {f"ema_{name}": value for name, value in values.items()}


def _in_words(result: Score) -> str:
    parts = ", ".join(f"{city} {part.score:.3f}" for city, part in result.cities.items())
    return f"{result.score:.4f} ({parts})"
