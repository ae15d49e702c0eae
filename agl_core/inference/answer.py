"""What one network says about one window of an image."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agl_core.errors import UserError
from agl_core.geometry import Pose, angle_from_direction
from agl_core.inference.tta import Averaged, View
from agl_core.model.precision import Precision


class NotFiniteError(UserError):
    """The network answered with NaN or infinity: its weights or the precision it runs in are broken."""


class Answer(NamedTuple):
    """(h, w) metres, the mean over the views, float32 of a single one and float64 of several; their standard deviation
    where it is asked for and there are several; and (scale, sin, cos) by view."""

    metres: NDArray[Any]
    spread: NDArray[np.float64] | None
    poses: list[list[float]]


class Network:
    """A network with the attributes and the forward pass of `GeoposeNet`, its precision, and the views it is shown.

    resident: it lies on the device all the time; otherwise it waits in the host's memory until `present`.
    """

    def __init__(self, model: nn.Module, precision: Precision, views: Sequence[View], device: torch.device) -> None:
        self.model, self.precision, self.views, self.device = model, precision, tuple(views), device
        self.resident = False

    def reside(self) -> None:
        """Bring the network to the device for good."""
        self.model.to(self.device)
        self.resident = True

    def leave(self) -> None:
        """Bring the network to the host's memory, where it waits."""
        self.model.to("cpu")
        self.resident = False

    @property
    def bytes(self) -> int:
        """Of its weights."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @contextmanager
    def present(self) -> Iterator[None]:
        """Have the network on the device, and afterwards where it waits."""
        if self.resident:
            yield
            return
        try:
            self.model.to(self.device)
            yield
        finally:
            self.model.to("cpu")

    def answer(self, rgb: NDArray[np.uint8], city: str, gsd: float, spread: bool = False) -> Answer:
        """Heights and pose of one (h, w, 3) uint8 window.

        The network is shown the window in all its views, and what it says of each is taken back into the window as it
        is; its modes are restored. Raises `UserError` for an unknown city, `NotFiniteError`.
        """
        index = torch.tensor([city_index(self.model, city)], device=self.device)
        averaged: Averaged | None = None
        poses = []
        with torch.inference_mode(), evaluating(self.model), self.precision.autocast():
            for view in self.views:
                shown_gsd = torch.tensor([view.gsd(gsd)], dtype=torch.float32, device=self.device)
                metres, pose = self._forward(view.image(rgb), index, shown_gsd)
                heights = view.heights(metres, *rgb.shape[:2])
                if averaged is None:
                    averaged = Averaged(heights, spread)
                else:
                    averaged.add(heights)
                poses.append(view.pose(*pose))
        assert averaged is not None  # there is always a view
        return Answer(averaged.mean(), averaged.spread(), poses)

    def try_out(self, side: int) -> None:
        """One forward pass of a black image of side x side pixels, to see what it takes."""
        city, gsd = torch.zeros(1, dtype=torch.int64, device=self.device), torch.ones(1, device=self.device)
        with torch.inference_mode(), evaluating(self.model), self.precision.autocast():
            self._ask(np.zeros((side, side, 3), np.uint8), city, gsd)

    def _forward(
        self, rgb: NDArray[np.uint8], city: torch.Tensor, gsd: torch.Tensor
    ) -> tuple[NDArray[np.float32], list[float]]:
        """(h, w) metres and (scale, sin, cos) of one view."""
        agl, pose = self._ask(rgb, city, gsd)
        if not (torch.isfinite(agl).all() and torch.isfinite(pose).all()):
            raise NotFiniteError(
                f"the network's answer is not finite in {self.precision.name}: "
                "use other weights, or try --precision float32"
            )
        return agl.cpu().numpy(), pose.tolist()

    def _ask(self, rgb: NDArray[np.uint8], city: torch.Tensor, gsd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same as float32 tensors on the device, whatever they say."""
        # Torch wants memory that could be written to, which a view of a store's map is not.
        shown = np.require(rgb, requirements=["C", "W"])
        # (H, W, 3) in memory seen as (1, 3, H, W) is already channels_last.
        image = torch.from_numpy(shown).to(self.device)[None].permute(0, 3, 1, 2)
        agl, pose = self.model(image, city, gsd)
        return agl[0].float(), pose[0].float()


def city_index(model: nn.Module, city: str) -> int:
    """Position of `city` in the model's cities; 0 for any city if the model does not look at it.

    Raises `UserError` that lists the model's cities.
    """
    cities: tuple[str, ...] = tuple(model.cities)  # type: ignore[arg-type]
    if city in cities:
        return cities.index(city)
    if not model.config.use_city:  # type: ignore[union-attr]
        return 0
    raise UserError(f"the model does not know city {city!r}: it was trained on {', '.join(cities)}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, and afterwards every module of it back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def mean_pose(poses: Sequence[Sequence[float]]) -> Pose:
    """Pose of an image from (scale, sin, cos) of its windows and views: mean scale, and the direction of the mean unit
    vector."""
    scale = math.fsum(scale for scale, _, _ in poses) / len(poses)
    lengths = [math.hypot(x, y) or 1.0 for _, x, y in poses]
    dx = math.fsum(x / length for (_, x, _), length in zip(poses, lengths, strict=True))
    dy = math.fsum(y / length for (_, _, y), length in zip(poses, lengths, strict=True))
    return Pose(max(scale, 0.0), float(angle_from_direction(dx, dy)))
