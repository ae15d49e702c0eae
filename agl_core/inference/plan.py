"""How large the windows are, and which networks lie on the device: first by counting, then by what runs out."""

import math
from collections.abc import Sequence

import torch

from agl_core.config.maps import PredictConfig
from agl_core.errors import UserError, valid_choice
from agl_core.inference.answer import Network
from agl_core.inference.memory import (
    MOST_ELEMENTS,
    MOST_PIXELS,
    SHARE,
    WINDOWS,
    Need,
    TooLargeError,
    device_memory,
    fitting_window,
    gib,
    is_shortage,
    measured_need,
    smaller,
)
from agl_core.inference.scene import row_bytes
from agl_core.model.network import STRIDE

OVERLAP = PredictConfig().overlap
AT_ONCE = ("auto", "all", "one")
ZOOMED_UNIT = 128
"""Windows that are also magnified begin at multiples of this (see `tta.ZOOMS`)."""

SMALL = 512 * 512  # pixels that are predicted as a whole without asking what that takes
ROW_BYTES = 2**30
"""Of the host's memory that a row of windows chosen here may take: it is as wide as the image."""

_WEIGHTS = 1 / 3  # of the room that there is on a GPU may the weights of all members take


class Plan:
    """What a `Predictor` does with the memory that there is.

    It follows from the networks, the machine and each image's size, and from what has run out before: what is as large
    as what was too large then is not tried again. notes: sentences for people, in order and each once. memory: bytes of
    the device that the windows are chosen for; one of two processes on a CPU has half of it, and so that it chooses the
    same, one that is alone too.
    """

    def __init__(
        self, networks: Sequence[Network], device: torch.device, window: int | None, overlap: int, at_once: str,
        processes: int, layers: int = 1,
    ) -> None:  # fmt: skip
        """See `Predictor` and `row_bytes`. Raises `UserError` for windows that cannot be."""
        _check(window, overlap)
        valid_choice("members_at_once", at_once, list(AT_ONCE))
        self.notes: list[str] = []
        self._networks, self._device, self._window, self._overlap = networks, device, window, overlap
        self.memory = device_memory(device, processes if device.type == "cuda" else max(processes, 2))
        self._most_pixels, self._needs, self._layers = MOST_PIXELS, list[Need](), layers
        self._told: set[int] = set()
        weights = sum(network.bytes for network in networks)
        self._can_take_turns = at_once == "auto" and len(networks) > 1 and device.type != "cpu"
        if at_once == "one" and len(networks) > 1:
            self._take_turns()
        elif self._can_take_turns and weights > _WEIGHTS * self._room:
            self._take_turns()
            self.notes.append(
                f"the weights of all {len(networks)} members take {gib(weights)}: they lie on {device} one at a time"
            )
        else:
            self._keep_all()

    @property
    def _room(self) -> int:
        """Bytes that a forward pass may be counted to take, the weights included."""
        return int(SHARE.get(self._device.type, SHARE["cpu"]) * self.memory)

    def window_of(self, height: int, width: int) -> int:
        """Side of the windows in which an image of that size is predicted, 0 for whole images."""
        if self._window is not None:
            return self._window
        if height * width <= min(SMALL, self._most_pixels):
            return 0
        window = self._chosen(height, width)
        if window and window not in self._told:
            self._told.add(window)
            self.notes.append(
                f"images of {height} x {width} pixels are predicted in windows of {window}: as a whole one would take "
                f"about {gib(self._bytes(height, width))} of memory"
            )
        return window

    def overlap_of(self, window: int) -> int:
        """Least pixels that neighbouring windows share: windows chosen here share at most half of their side."""
        return self._overlap if self._window is not None else min(self._overlap, window // 2)

    def unit_of(self, window: int) -> int:
        """Pixels of which first rows and columns of windows are multiples."""
        zoomed = any(view.zoom != 1 for network in self._networks for view in network.views)
        aligned = window % ZOOMED_UNIT == 0 and self.overlap_of(window) <= window - ZOOMED_UNIT
        return ZOOMED_UNIT if zoomed and aligned else STRIDE

    def give_way(self, height: int, width: int, error: BaseException) -> None:
        """Plan anew after memory ran out at an image of that size: members take turns, or windows become smaller.

        Raises `TooLargeError` where the user has chosen the window, and where nothing smaller makes sense.
        """
        if self._can_take_turns:
            self._take_turns()
            self.notes.append(f"{self._device} has run out of memory: from here on the members lie there one at a time")
            return
        window = self.window_of(height, width)
        sides = (min(window, height), min(window, width)) if window else (height, width)
        pixels = smaller(sides[0] * sides[1])
        place = f"{self._device} has too little memory for {sides[0]} x {sides[1]} pixels at once"
        if self._window is not None:
            raise TooLargeError(f"{place}: leave --window out, or give a smaller one") from error
        if pixels is None:
            raise TooLargeError(f"{place}: use a device with more memory, or fewer --processes on it") from error
        self._most_pixels = pixels
        window = self._chosen(height, width)
        self._told.add(window)
        self.notes.append(f"{place}: from here on it is given windows of {window}")

    def _keep_all(self) -> None:
        try:
            for network in self._networks:
                network.reside()
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            if not self._can_take_turns:
                raise TooLargeError(f"{self._device} has too little memory for the networks: use another") from error
            self._take_turns()
            self.notes.append(f"{self._device} has too little memory for all members: they lie there one at a time")

    def _take_turns(self) -> None:
        self._can_take_turns = False
        for network in self._networks:
            network.leave()

    def _chosen(self, height: int, width: int) -> int:
        """The largest window that fits, and whose rows take no more than `ROW_BYTES` where that can be."""
        window = fitting_window(height, width, self._fits, self._most_pixels)
        narrower = [side for side in WINDOWS if side < window]
        while narrower and row_bytes(height, width, window, self._layers) > ROW_BYTES:
            window = narrower.pop(0)
        return window

    def _fits(self, height: int, width: int) -> bool:
        resident = sum(network.bytes for network in self._networks if network.resident)
        elements = max(need.elements(*size) for need, size in self._forwards(height, width))
        return resident + self._bytes(height, width) <= self._room and elements <= MOST_ELEMENTS

    def _bytes(self, height: int, width: int) -> int:
        return max(need.bytes(*size) for need, size in self._forwards(height, width))

    def _forwards(self, height: int, width: int) -> list[tuple[Need, tuple[int, int]]]:
        """What each network's forward passes take, and the size of its largest view."""
        if not self._needs:
            for network in self._networks:
                with network.present():
                    self._needs.append(_need(network))
        zooms = [max(view.zoom for view in network.views) for network in self._networks]
        return [
            (need, (_padded(height * zoom), _padded(width * zoom)))
            for need, zoom in zip(self._needs, zooms, strict=True)
        ]


def _need(network: Network) -> Need:
    for sides in ((128, 256), (64, 128)):
        try:
            return measured_need(network.try_out, sides)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            shortage = error
    raise TooLargeError(
        f"{network.device} has too little memory for the networks and 128 x 128 pixels: use another, or fewer "
        "--processes on it"
    ) from shortage


def _check(window: int | None, overlap: int) -> None:
    if overlap < 0:
        raise UserError(f"overlap is {overlap} pixels: give at least 0")
    if not window:
        return
    if window < STRIDE or window % STRIDE:
        raise UserError(f"window is {window} pixels: give a multiple of {STRIDE}, or 0 for whole images")
    if overlap > window - STRIDE:
        raise UserError(
            f"overlap is {overlap} pixels and window is {window}: give an overlap of at most {window - STRIDE}, which "
            f"is {STRIDE} less than the window"
        )


def _padded(side: float) -> int:
    return math.ceil(math.ceil(side) / STRIDE) * STRIDE
