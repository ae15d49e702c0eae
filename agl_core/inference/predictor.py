"""From one image to its heights and its pose, with one network or several that answer together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agl_core.data.tiles import HIGHEST_CM, UNKNOWN
from agl_core.errors import UserError, valid_choice
from agl_core.geometry import Pose
from agl_core.inference.answer import Answer, Network, NotFiniteError, city_index, evaluating, mean_pose
from agl_core.inference.combine import COMBINE, combine_heights, combine_poses, scaled_weights
from agl_core.inference.memory import is_shortage
from agl_core.inference.plan import OVERLAP, Plan
from agl_core.inference.scene import ArraySource, Box, Grid, Heights, Source, read_ahead, strips
from agl_core.inference.tta import VIEWS
from agl_core.model.precision import Precision

__all__ = ["NotFiniteError", "Prediction", "Predictor", "Sink", "city_index", "evaluating"]

Sink = Callable[[int, NDArray[np.uint16], NDArray[np.uint16] | None], None]
"""Takes finished strips of full width: number of the first row, (n, W) centimetres, and their standard deviation or
None. They come from top to bottom. Row 0 comes again where memory ran out and all begins anew in smaller windows."""


@dataclass(frozen=True)
class Prediction:
    """agl_cm: (H, W) uint16 centimetres, nowhere unknown; pose in pixels per metre and radians; spread_cm: (H, W)
    uint16, the standard deviation of the heights, where it was asked for."""

    agl_cm: NDArray[np.uint16]
    pose: Pose
    spread_cm: NDArray[np.uint16] | None = None

    @property
    def agl(self) -> NDArray[np.float32]:
        """(H, W) float32 metres, NaN where unknown."""
        return np.where(self.agl_cm == UNKNOWN, np.float32(np.nan), (self.agl_cm / 100.0).astype(np.float32))


class Predictor:
    """Predicts images of any size, one at a time.

    The result depends on the image, its city and its gsd alone, never on what was predicted before. What is predicted
    is what is written to disk: heights within [0, the city's highest], rounded to centimetres.
    """

    def __init__(
        self,
        models: nn.Module | Sequence[nn.Module],
        max_agl: Mapping[str, float],
        window: int | None = 0,
        overlap: int = OVERLAP,
        precision: str | Sequence[str] = "auto",
        device: torch.device | str | None = None,
        tta: str | Sequence[str] = "none",
        *,
        member_weights: Sequence[float] = (),
        combine: str = "mean",
        at_once: str = "auto",
        height_factor: Mapping[str, float] | None = None,
        scale_lines: Mapping[str, tuple[float, float]] | None = None,
        spread: bool = False,
        processes: int = 1,
    ) -> None:
        """Each of `models` has the attributes and the forward pass of `GeoposeNet`; its modes are restored after each
        image.

        Args:
            max_agl: highest height by city, metres, with `default` for the cities not named.
            window: side of the overlapping windows; 0: whole images; None: whole images while memory allows, otherwise
                windows that it allows, and smaller ones if it runs out all the same.
            overlap: least pixels that neighbouring windows share; windows chosen here share at most half of their side.
            precision: as in training, `auto` for the device's own (see `Precision.choose`); one for each member, or
                one for all, as `tta`.
            device: moves the models there; by default it is that of the first.
            tta: name of the views in `VIEWS` that every image, or window, is predicted in; their answers are averaged.
                They take that many times as long and, but for magnified ones, no more memory on the device.
            member_weights, combine: how the members' heights and poses are joined (see `agl_core.inference.combine`).
            at_once: all members lie on the device; one does, and the others wait in the host's memory; auto.
            height_factor: what heights are multiplied with before they are clipped, by city or `default`.
            scale_lines: (a, b) by city or `default`: a + b * scale * gsd stands for scale * gsd.
            spread: also tell the standard deviation of the members' heights, or of a single one's views.
            processes: so many share the device's memory.
        """
        members = [models] if isinstance(models, nn.Module) else list(models)
        self.combine = valid_choice("combine", combine, list(COMBINE))
        self.member_weights = scaled_weights(member_weights, len(members))
        self.device = torch.device(device) if device is not None else next(members[0].parameters()).device
        self.max_agl, self.spread = dict(max_agl), spread
        self.height_factor, self.scale_lines = dict(height_factor or {}), dict(scale_lines or {})
        precisions = [Precision.choose(name, self.device) for name in _of_each(precision, len(members))]
        views = [VIEWS[valid_choice("tta", name, list(VIEWS))] for name in _of_each(tta, len(members))]
        if spread and len(members) == len(views[0]) == 1:
            raise UserError("one network that sees an image once has no spread: predict with several, or with --tta d4")
        self.networks = [Network(*one, self.device) for one in zip(members, precisions, views, strict=True)]
        self._plan = Plan(self.networks, self.device, window, overlap, at_once, processes, 2 if spread else 1)

    @property
    def notes(self) -> list[str]:
        """What was decided about windows and members, sentences for people, in order and each once."""
        return self._plan.notes

    @property
    def memory(self) -> int:
        """Bytes of the device that windows are chosen for."""
        return self._plan.memory

    def use_memory(self, memory: int) -> None:
        """Choose windows as if the device had no more than so many bytes."""
        self._plan.memory = min(self._plan.memory, memory)

    @property
    def precision(self) -> Precision:
        """Of the first member."""
        return self.networks[0].precision

    def predict(self, rgb: NDArray[np.uint8], city: str, gsd: float) -> Prediction:
        """Heights and pose of one image.

        rgb: (H, W, 3) uint8; gsd: metres per pixel. Raises `UserError` for a city that the model does not know,
        `NotFiniteError` when what the network says is not a number, `TooLargeError` when there is too little memory.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
            raise ValueError(f"RGB is {rgb.shape} {rgb.dtype}, expected (H, W, 3) uint8")
        parts: list[tuple[NDArray[np.uint16], NDArray[np.uint16] | None]] = []

        def keep(top: int, agl_cm: NDArray[np.uint16], spread_cm: NDArray[np.uint16] | None) -> None:
            if top == 0:
                parts.clear()
            parts.append((agl_cm, spread_cm))

        pose = self.predict_scene(ArraySource(rgb), city, gsd, keep)
        agl_cm = parts[0][0] if len(parts) == 1 else np.concatenate([agl for agl, _ in parts])
        spreads = [spread for _, spread in parts if spread is not None]
        return Prediction(agl_cm, pose, np.concatenate(spreads) if spreads else None)

    def predict_scene(self, source: Source, city: str, gsd: float, sink: Sink) -> Pose:
        """The pose of an image of any size, whose heights go to `sink` strip by strip; in bounded memory, if it is
        predicted in windows, each of which is read once. The heights are those of `predict`, which raises the same."""
        while True:
            try:
                return self._attempt(source, city, gsd, sink)
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                self._plan.give_way(source.height, source.width, error)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def window_of(self, height: int, width: int) -> int:
        """Side of the windows in which an image of that size is predicted, 0 for whole images.

        It follows from the image's size, the networks and the machine; but where memory has run out before, what is as
        large as what was too large then is predicted in smaller windows.
        """
        return self._plan.window_of(height, width)

    def _attempt(self, source: Source, city: str, gsd: float, sink: Sink) -> Pose:
        highest, factor = self._highest(city), self.height_factor.get(city, self.height_factor.get("default", 1.0))
        window = self.window_of(source.height, source.width)
        overlap, unit = self._plan.overlap_of(window), self._plan.unit_of(window)
        grid = Grid.lay(source.height, source.width, window, overlap, unit)
        boxes = [box for row in grid.rows for box in row]
        poses: list[list[list[float]]] = [[] for _ in self.networks]
        with closing(read_ahead(source, boxes)) as images:

            def answers(row: Sequence[Box]) -> Iterator[Heights]:
                for each in self._answers(islice(images, len(row)), city, gsd):
                    for known, answer in zip(poses, each, strict=True):
                        known += answer.poses
                    yield self._joined(each)

            for top, heights in strips(grid, answers):
                spread_cm = None
                if heights.spread is not None:
                    spread_cm = _centimetres(heights.spread, factor, HIGHEST_CM / 100)
                sink(top, _centimetres(heights.metres, factor, highest), spread_cm)
        return self._pose([mean_pose(known) for known in poses], city, gsd)

    def _answers(self, images: Iterator[NDArray[np.uint8]], city: str, gsd: float) -> Iterator[list[Answer]]:
        """By window, the members' answers. Members that take turns each see all `images` before the next one comes."""
        single = len(self.networks) == 1
        if all(network.resident for network in self.networks):
            for rgb in images:
                yield [network.answer(rgb, city, gsd, self.spread and single) for network in self.networks]
            return
        waiting, by_member = list(images), []
        for network in self.networks:
            with network.present():
                by_member.append([network.answer(rgb, city, gsd, self.spread and single) for rgb in waiting])
        yield from map(list, zip(*by_member, strict=True))

    def _joined(self, answers: Sequence[Answer]) -> Heights:
        if len(answers) == 1:
            return Heights(answers[0].metres, answers[0].spread)
        metres = [answer.metres for answer in answers]
        threads = min(torch.get_num_threads(), 8)
        return Heights(*combine_heights(metres, self.member_weights, self.combine, self.spread, threads))

    def _pose(self, poses: Sequence[Pose], city: str, gsd: float) -> Pose:
        pose = poses[0] if len(poses) == 1 else combine_poses(poses, self.member_weights)
        line = self.scale_lines.get(city, self.scale_lines.get("default"))
        if line is None:
            return pose
        return Pose(max(line[0] + line[1] * pose.scale * gsd, 0.0) / gsd, pose.angle)

    def _highest(self, city: str) -> float:
        """Highest height of the city, metres, and of what uint16 centimetres can say."""
        highest = self.max_agl.get(city, self.max_agl.get("default"))
        if highest is None:
            raise UserError(f"max_agl names neither city {city} nor 'default': add max_agl.default=200")
        return min(highest, HIGHEST_CM / 100)


def _of_each(names: str | Sequence[str], members: int) -> list[str]:
    """One name for each member, of one for all or one for each."""
    each = [names] * members if isinstance(names, str) else list(names)
    if len(each) != members:
        raise ValueError(f"{len(each)} names for {members} members")
    return each


def _centimetres(metres: NDArray[Any], factor: float, highest: float) -> NDArray[np.uint16]:
    """Heights times `factor`, within [0, highest metres], rounded."""
    values = np.clip(metres if factor == 1 else metres * factor, 0.0, highest)
    values *= 100
    return np.rint(values, out=values).astype(np.uint16)
