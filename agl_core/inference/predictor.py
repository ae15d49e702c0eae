"""From one image to its heights and its pose."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agl_core.data.tiles import HIGHEST_CM
from agl_core.errors import UserError, valid_choice
from agl_core.geometry import D4, IDENTITY, Pose, angle_from_direction, apply, apply_direction
from agl_core.inference.windows import blend_weights, pad_to_multiple, window_starts
from agl_core.model.network import STRIDE
from agl_core.model.precision import Precision

SYMMETRIES = {"none": (IDENTITY,), "d4": D4}
"""Under which symmetries of the pixel grid an image is predicted, in this order, by the name of `tta`."""


class NotFiniteError(UserError):
    """The network answered with NaN or infinity: its weights or the precision it runs in are broken."""


@dataclass(frozen=True)
class Prediction:
    """agl_cm: (H, W) uint16 centimetres, nowhere unknown; pose in pixels per metre and radians."""

    agl_cm: NDArray[np.uint16]
    pose: Pose


class Predictor:
    """Predicts whole images of any size, one at a time.

    The result depends on the image, its city and its gsd alone, never on what was predicted before. What is predicted
    is what is written to disk: heights within [0, the city's highest], rounded to centimetres.
    """

    def __init__(
        self,
        model: nn.Module,
        max_agl: Mapping[str, float],
        window: int = 0,
        overlap: int = 128,
        precision: str = "auto",
        device: torch.device | str | None = None,
        tta: str = "none",
    ) -> None:
        """`model` has the attributes and the forward pass of `GeoposeNet`; its modes are restored after each image.

        max_agl: highest height by city, metres, with `default` for the cities not named. window: side of the
        overlapping windows, 0 for whole images. precision: as in training, `auto` for the device's own
        (see `Precision.choose`). device: moves the model there; by default it stays where it is. tta: `none`, or `d4`
        to predict every image, or window, in all eight symmetries of the square: the answers are taken back into the
        image as it is, and averaged. That takes eight times as long and no more memory on the device.
        """
        if window and (window < STRIDE or window % STRIDE):
            raise UserError(f"window is {window} pixels: give a multiple of {STRIDE}, or 0 for whole images")
        if window and not 0 <= overlap < window:
            raise UserError(f"overlap is {overlap} pixels: give at least 0 and less than the window ({window})")
        self.model = model if device is None else model.to(device)
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self.max_agl, self.window, self.overlap = dict(max_agl), window, overlap
        self.precision = Precision.choose(precision, self.device)
        self.symmetries = SYMMETRIES[valid_choice("tta", tta, list(SYMMETRIES))]

    def predict(self, rgb: NDArray[np.uint8], city: str, gsd: float) -> Prediction:
        """Heights and pose of one image.

        rgb: (H, W, 3) uint8; gsd: metres per pixel. Raises `UserError` for a city that the model does not know,
        `NotFiniteError` when what the network says is not a number.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
            raise ValueError(f"RGB is {rgb.shape} {rgb.dtype}, expected (H, W, 3) uint8")
        highest = self._highest(city)
        conditions = (
            torch.tensor([city_index(self.model, city)], device=self.device),
            torch.tensor([gsd], dtype=torch.float32, device=self.device),
        )
        with torch.inference_mode(), evaluating(self.model), self.precision.autocast():
            metres, pose = self._blend(rgb, conditions)
        return Prediction(np.rint(np.clip(metres, 0.0, highest) * 100).astype(np.uint16), pose)

    def _highest(self, city: str) -> float:
        """Highest height of the city, metres, and of what uint16 centimetres can say."""
        highest = self.max_agl.get(city, self.max_agl.get("default"))
        if highest is None:
            raise UserError(f"max_agl names neither city {city} nor 'default': add max_agl.default=200")
        return min(highest, HIGHEST_CM / 100)

    def _blend(
        self, rgb: NDArray[np.uint8], conditions: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[NDArray[np.float32] | NDArray[np.float64], Pose]:
        """(H, W) metres and pose of the whole image, from the answers of its windows."""
        height, width = rgb.shape[:2]
        window_height, window_width = (min(self.window, n) if self.window else n for n in (height, width))
        ys, xs = (window_starts(n, self.window or n, self.overlap) for n in (height, width))
        if len(ys) == len(xs) == 1:
            metres, poses = self._answer(rgb, conditions)
            return metres, _mean_pose(poses)
        weights = np.outer(blend_weights(window_height, self.overlap), blend_weights(window_width, self.overlap))
        total, weight, poses = np.zeros((height, width)), np.zeros((height, width)), []
        for y in ys:
            for x in xs:
                inside = np.s_[y : y + window_height, x : x + window_width]
                metres, further = self._answer(rgb[inside], conditions)
                total[inside] += weights * metres
                weight[inside] += weights
                poses += further
        return total / weight, _mean_pose(poses)

    def _answer(
        self, rgb: NDArray[np.uint8], conditions: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[NDArray[np.float32] | NDArray[np.float64], list[list[float]]]:
        """(H, W) metres of one window, the mean over the symmetries, and (scale, sin, cos) by symmetry.

        What the network says of a turned or mirrored window is turned or mirrored back, which is exact. The scale and
        the gsd are the same in all of them.
        """
        if self.symmetries == (IDENTITY,):
            metres, pose = self._forward(rgb, conditions)
            return metres, [pose]
        total, poses = np.zeros(rgb.shape[:2]), []
        for symmetry in self.symmetries:
            metres, (scale, dx, dy) = self._forward(apply(rgb, symmetry), conditions)
            back = symmetry.inverse()
            total += apply(metres, back)
            poses.append([scale, *apply_direction(dx, dy, back)])
        return total / len(self.symmetries), poses

    def _forward(
        self, rgb: NDArray[np.uint8], conditions: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[NDArray[np.float32], list[float]]:
        """(H, W) metres and (scale, sin, cos) of one window."""
        # Torch wants memory that could be written to, which a view of a store's map is not.
        padded = np.require(pad_to_multiple(rgb, STRIDE), requirements=["C", "W"])
        # (H, W, 3) in memory seen as (1, 3, H, W) is already channels_last.
        image = torch.from_numpy(padded).to(self.device)[None].permute(0, 3, 1, 2)
        agl, pose = self.model(image, *conditions)
        agl, pose = agl[0, : rgb.shape[0], : rgb.shape[1]].float(), pose[0].float()
        if not (torch.isfinite(agl).all() and torch.isfinite(pose).all()):
            raise NotFiniteError(
                f"the network's answer is not finite in {self.precision.name}: "
                "use other weights, or try --precision float32"
            )
        return agl.cpu().numpy(), pose.tolist()


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


def _mean_pose(poses: list[list[float]]) -> Pose:
    """Pose of an image from (scale, sin, cos) of its windows and symmetries: mean scale, and the direction of the mean
    unit vector."""
    scale = math.fsum(scale for scale, _, _ in poses) / len(poses)
    lengths = [math.hypot(x, y) or 1.0 for _, x, y in poses]
    dx = math.fsum(x / length for (_, x, _), length in zip(poses, lengths, strict=True))
    dy = math.fsum(y / length for (_, _, y), length in zip(poses, lengths, strict=True))
    return Pose(max(scale, 0.0), float(angle_from_direction(dx, dy)))
