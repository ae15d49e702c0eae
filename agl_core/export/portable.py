"""The network for other programs: ONNX or torch.export, with what one has to know to use it."""

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agl_core.config import ExportConfig
from agl_core.errors import UserError
from agl_core.export.facts import LARGEST, SMALLEST, describe
from agl_core.export.origin import read_origin
from agl_core.files import fsync_folder, whole_file, writable_folder, write_json
from agl_core.model.network import STRIDE, GeoposeNet

TOLERANCE = 1e-4
"""Largest difference between a portable network and the original, as a share of the largest height (at least 10 m: a
millimetre), and of the largest number of the pose (at least 1)."""

CHECKED = ((64, 96), (160, 128))
"""Heights and widths of the images on which both are compared; neither is the one that the network is traced on."""

_TRACED = (96, 128)
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

Answer = tuple[NDArray[np.float32], NDArray[np.float32]]
Run = Callable[[Tensor, Tensor, Tensor], Answer]


class Portable(nn.Module):
    """A network that takes images as they lie in memory when they are read."""

    def __init__(self, network: GeoposeNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, city: Tensor, gsd: Tensor) -> tuple[Tensor, Tensor]:
        """(1, H, W) metres above ground and (1, 3) scale, sin and cos of the angle, from an image, (1, H, W, 3)
        uint8, the position of its city, (1,) int64, and its metres per pixel, (1,) float32."""
        output = self.network(image.permute(0, 3, 1, 2), city, gsd)
        return output.agl, output.pose


def export_model(config: ExportConfig) -> list[Path]:
    """Write the network of a run, or of a weights file, to `<out>/<name>.onnx` or `.pt2`, and what it takes and gives
    to `<name>.json` beside it; returns both. They appear whole, and only if the file, read again, answers as the
    network does.

    Raises:
        UserError: no such run or weights, packages that are missing, a network that cannot be exported, or one that
            answers differently once it is.
    """
    suffix = "onnx" if config.format == "auto" else config.format
    if suffix == "onnx":
        check_packages()
    origin = read_origin(config)
    folder = writable_folder(Path(config.out), "--out")
    path, about = folder / f"{origin.name}.{suffix}", folder / f"{origin.name}.json"
    facts = describe(origin)
    model = Portable(origin.model).eval()
    print(f"exporting {origin.name} ({origin.model.encoder_name}): a minute or two", flush=True)
    program = traced(model, origin.model.encoder_name)
    with whole_file(path) as aside:
        (_save_onnx if suffix == "onnx" else _save_pt2)(aside, program, facts)
        apart = difference(model, load(aside), len(origin.model.cities))
        if apart > TOLERANCE:
            raise UserError(
                f"{path} is not written: the exported network differs from the original by {apart:.1e} of its largest "
                f"values, more than {TOLERANCE:.0e}; try the other --format"
            )
        about.unlink(missing_ok=True)
        fsync_folder(folder)
    write_json(about, facts)
    print(f"network of {origin.name}, the same as the original to {apart:.0e} -> {path}")
    return [path, about]


def check_packages() -> None:
    """Raise a `UserError` if a package that ONNX needs is not there."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: give "
            f"`pip install {' '.join(_PACKAGES)}`, or --format pt2, which needs nothing more"
        )


def traced(model: Portable, encoder: str) -> torch.export.ExportedProgram:
    """The network as a graph, for images of all sizes from `SMALLEST` to `LARGEST`.

    Raises:
        UserError: its encoder does something that cannot be traced, or that depends on the size of the image.
    """
    image = torch.zeros(1, *_TRACED, 3, dtype=torch.uint8)
    rows, columns = (
        torch.export.Dim(name, min=SMALLEST // STRIDE, max=LARGEST // STRIDE) for name in ("rows", "columns")
    )
    sizes = ({1: STRIDE * rows, 2: STRIDE * columns}, None, None)
    try:
        with torch.no_grad(), _quiet(), _padding_of_whole_strides():
            return torch.export.export(
                model, (image, torch.zeros(1, dtype=torch.int64), torch.ones(1)), dynamic_shapes=sizes
            )
    except Exception as error:  # of many kinds, some of them not public
        raise UserError(
            f"a network with the encoder {encoder!r} cannot be exported ({_first_line(error)}): take the weights of "
            "another encoder"
        ) from error


def load(path: Path) -> Run:
    """An exported network that is read from its file, ready to be asked, on the CPU."""
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()

        def ask_torch(image: Tensor, city: Tensor, gsd: Tensor) -> Answer:
            with torch.no_grad():
                agl, pose = module(image, city, gsd)
            return agl.numpy(), pose.numpy()

        return ask_torch
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}

    def ask_onnx(image: Tensor, city: Tensor, gsd: Tensor) -> Answer:
        given = {"image": image.numpy(), "city": city.numpy(), "gsd": gsd.numpy()}
        agl, pose = session.run(["agl", "pose"], {name: value for name, value in given.items() if name in names})
        return agl, pose

    return ask_onnx


def difference(model: Portable, run: Run, cities: int) -> float:
    """How far an exported network is from the original at most, on random images: see `TOLERANCE`."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for number, size in enumerate(CHECKED):
        image = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=generator)
        city, gsd = torch.tensor([(cities - 1) * number // (len(CHECKED) - 1)]), torch.tensor([0.3 + 0.2 * number])
        with torch.no_grad():
            expected = [value.numpy() for value in model(image, city, gsd)]
        for found, value, least in zip(run(image, city, gsd), expected, (10.0, 1.0), strict=True):
            if found.shape != value.shape:
                return float("inf")
            apart = float(np.abs(found - value).max()) / max(least, float(np.abs(value).max()))
            worst = max(worst, apart if apart == apart else float("inf"))  # NaN is as wrong as can be
    return worst


def _save_onnx(path: Path, program: torch.export.ExportedProgram, facts: dict[str, Any]) -> None:
    import onnx_ir

    with _quiet():
        exported = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["image", "city", "gsd"], output_names=["agl", "pose"]
        )
    assert exported is not None
    graph = exported.model.graph
    # What the sides are called in the graph depends on the tracer.
    for value, first in ((graph.inputs[0], 1), (graph.outputs[0], 1)):
        assert value.shape is not None
        sides = dict(zip((first, first + 1), ("height", "width"), strict=True))
        value.shape = onnx_ir.Shape(sides.get(axis, side) for axis, side in enumerate(value.shape))
    exported.model.producer_name, exported.model.doc_string = "agl", "Height above ground from one oblique image"
    exported.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    exported.save(path, external_data=False)


def _save_pt2(path: Path, program: torch.export.ExportedProgram, facts: dict[str, Any]) -> None:
    with _quiet():
        torch.export.save(program, path, extra_files={"about.json": json.dumps(facts)})


@contextmanager
def _padding_of_whole_strides() -> Iterator[None]:
    """timm's encoders with the padding of TensorFlow work it out from the size of what they pad, which a graph for all
    sizes cannot do in a reasonable time. Here every side is a multiple of the strides that are still to come, and then
    it is the same for all: (ceil(n / stride) - 1) * stride + (kernel - 1) * dilation + 1 - n, n a multiple of stride.
    """
    from timm.layers import padding

    before = padding.get_same_padding
    padding.get_same_padding = lambda x, kernel_size, stride, dilation: max(
        (kernel_size - 1) * dilation + 1 - stride, 0
    )
    try:
        yield
    finally:
        padding.get_same_padding = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch tells its own developers while it traces."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
