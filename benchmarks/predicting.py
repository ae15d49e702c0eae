"""Predicting end to end against the bare forward pass: 2048 x 2048 images from files to files, resnet18.

The bare forward (the baseline) finds the images in memory and throws the answers away. `predict` reads the files, asks
the same network in the same precision, clips and rounds, writes heights and poses as the challenge wants them, and
makes every file appear whole; it also loads the network anew in every round. The images are GeoTIFFs; with
`--format j2k` they are JPEG 2000, whose decoding alone takes about as long as a small network.

Beside the times: how far windows differ from the whole image, for a network that was trained for a few minutes, and
what memory a georeferenced image of up to 20000 x 20000 pixels takes.
"""

import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.windows import Window

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import ModelConfig, PredictConfig
from agl_core.data.tiles import read_rgb
from agl_core.inference.predict import predict
from agl_core.inference.predictor import Predictor, evaluating
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import load_weights, save_weights
from benchmarks.footprint import Watch
from benchmarks.harness import Table, at_most, check_json, compare, parser, report
from benchmarks.tiles import CITIES, rendered

LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"
MOST = 1.1  # times the bare forward pass
MOST_SEAM = 1.0  # centimetres, in the mean
MOST_MEMORY = 4.0  # GiB
CRS, ORIGIN, GSD = "EPSG:32633", (380000.0, 5820000.0), 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write what `--json` asks for."""
    command = parser(__doc__.partition("\n")[0])
    command.add_argument("--format", choices=("tif", "j2k"), default="tif", help="format of the images")
    given = command.parse_args(argv)
    options = check_json(command, given)
    quick, rounds = options.quick, 2 if options.quick else 7
    side, images = (256, 1) if quick else (2048, CITIES)
    with tempfile.TemporaryDirectory(prefix="agl-benchmark-predicting-") as name:
        folder = Path(name)
        data = data_set(rendered(side, given.format), images, folder / "data")
        untrained = random_weights("tu-resnet10t" if quick else "resnet18", folder / "random.safetensors")
        bare, end_to_end = contenders(data, untrained, folder)
        comparison = compare({"bare forward": bare, "predict": end_to_end}, rounds, "bare forward")
        trained = random_weights("tu-resnet10t", folder / "quick.safetensors") if quick else trained_weights()
        seams, worst = seam_table(trained, rendered(side), [64] if quick else [512, 1024])
        memory, most, placed = memory_table(
            trained, rendered(side), [256, 512] if quick else [2048, 8192, 20000], folder
        )
    report(
        comparison,
        f"{images} images of {side} x {side} from {given.format} files",
        {"side": side, "images": images, "rounds": rounds, "format": given.format, "threads": torch.get_num_threads()},
        options,
        [seams, memory],
        [
            at_most("predict, from files to files", comparison.spread("predict").median, MOST, "x the bare forward", 3),
            at_most("windows against the whole image, mean", worst, MOST_SEAM, "cm", 3),
            at_most("the largest image", most, MOST_MEMORY, "GiB", 2),
            at_most("images whose CRS or transform is not the input's", placed, 0, "images", 0),
        ],
    )  # fmt: skip


def data_set(data: Path, images: int, out: Path) -> Path:
    """A data set whose test split are the first training images of `data`."""
    (out / "test").mkdir(parents=True)
    rows = (data / "geopose_train.csv").read_text().splitlines()
    header = rows[0].split(",")
    lines = ["id,rgb"]
    for row in rows[1 : images + 1]:
        cells = dict(zip(header, row.split(","), strict=True))
        os.link(data / "train" / cells["rgb"], out / "test" / cells["rgb"])
        lines.append(f"{cells['id']},{cells['rgb']}")
    (out / "geopose_test.csv").write_text("\n".join(lines) + "\n")
    shutil.copy(data / "metadata.csv", out / "metadata.csv")
    return out


def random_weights(encoder: str, path: Path) -> Path:
    """A weights file of a network that was never trained, for all cities."""
    torch.manual_seed(0)
    save_weights(path, GeoposeNet(encoder, ["X"], ModelConfig(use_city=False)), {})
    return path


def trained_weights(steps: int = 400) -> Path:
    """A weights file of the demo's network after `steps` steps; trained once, and kept with the benchmarks' tiles."""
    kept = Path(tempfile.gettempdir()) / f"agl-benchmark-weights-{steps}.safetensors"
    if not kept.is_file():
        print(f"training the demo's network for {steps} steps", flush=True)
        with tempfile.TemporaryDirectory(prefix="agl-benchmark-training-") as name:
            world, runs = f"{name}/world", f"{name}/runs"
            launch("world", "--out", world, "--tiles", "240", "--size", "256")
            launch(
                "--cluster", "debug", "--encoder", "tu-resnet10t", "--recipe", "demo", "--data", world, "--runs", runs,
                "--run", "short", "--until", "train", "model.use_city=false", f"stages.train.length={steps} steps",
            )  # fmt: skip
            aside = kept.with_suffix(".part")
            shutil.copy(f"{runs}/short/weights/train/last.safetensors", aside)
            aside.rename(kept)
    return kept


def launch(*words: str) -> None:
    """Run the project's command, quietly."""
    subprocess.run(
        [sys.executable, str(LAUNCH), *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def contenders(data: Path, weights: Path, folder: Path) -> tuple[Any, Any]:
    """The bare forward pass over the test images of `data`, and the verb `predict` on them."""
    paths = sorted((data / "test").iterdir())
    model, _ = load_weights(weights)
    cast(Any, model).to(memory_format=torch.channels_last)
    tensors = [torch.from_numpy(read_rgb(path))[None].permute(0, 3, 1, 2) for path in paths]
    conditions = torch.zeros(1, dtype=torch.int64), torch.full((1,), GSD)
    config = PredictConfig(weights=str(weights), data=str(data), out=str(folder / "out"), precision="float32")

    def bare() -> None:
        with torch.inference_mode(), evaluating(model):
            for tensor in tensors:
                model(tensor, *conditions)

    def end_to_end() -> None:
        shutil.rmtree(config.out, ignore_errors=True)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            if predict(config) != len(paths):
                raise RuntimeError("not every image was predicted")

    return bare, end_to_end


def seam_table(weights: Path, data: Path, windows: Sequence[int]) -> tuple[Table, float]:
    """How far the heights of windows differ from those of the whole image, and the largest mean difference, cm."""
    model, _ = load_weights(weights)
    rows, worst = [], 0.0
    paths = sorted((data / "train").glob("*_RGB.tif"))
    whole = {path: heights(Predictor(model, {"default": 200.0}), path) for path in paths}
    for window in windows:
        overlap = PredictConfig().overlap if window > PredictConfig().overlap else window // 2
        differences = [
            np.abs(heights(Predictor(model, {"default": 200.0}, window, overlap), path) - whole[path]) for path in paths
        ]
        joined = np.concatenate([one.ravel() for one in differences])
        worst = max(worst, float(joined.mean()))
        level = float(np.mean([one.mean() for one in whole.values()])) / 100
        rows.append([
            str(window), str(overlap), f"{joined.mean():.3f}", f"{np.percentile(joined, 99.9):.1f}",
            f"{joined.max():.0f}", f"{level:.2f}",
        ])  # fmt: skip
    columns = ["window", "overlap", "mean, cm", "99.9 %, cm", "highest, cm", "mean height, m"]
    return Table("heights in windows against those of the whole image", columns, rows), worst


def heights(predictor: Predictor, path: Path) -> NDArray[np.float64]:
    """(H, W) centimetres."""
    return predictor.predict(read_rgb(path), "X", GSD).agl_cm.astype(np.float64)


def memory_table(weights: Path, data: Path, sides: Sequence[int], folder: Path) -> tuple[Table, float, int]:
    """Peak memory of `predict` on one georeferenced image of each side, GiB; the highest; and how many outputs are not
    where their inputs are."""
    rows, most, misplaced = [], 0.0, 0
    tile = read_rgb(sorted((data / "train").glob("*_RGB.tif"))[0])
    for side in sides:
        image, out = folder / f"image_{side}.tif", folder / f"scene_{side}"
        write_scene(image, tile, side)
        words = ["predict", "--weights", str(weights), "--images", str(image), "--out", str(out)]
        process = subprocess.Popen([sys.executable, str(LAUNCH), *words], stdout=subprocess.DEVNULL)
        with Watch(process.pid) as watch:
            code = process.wait()
        if code:
            raise RuntimeError(f"predict ended with exit code {code}")
        peak = sum(watch.peaks.values()) * 1e6 / 2**30
        with rasterio.open(image) as given, rasterio.open(out / f"image_{side}_AGL.tif") as made:
            same = (given.crs, given.transform, given.shape) == (made.crs, made.transform, made.shape)
            size = os.path.getsize(made.name) / 1e6
        misplaced += not same
        most = max(most, peak)
        rows.append([f"{side} x {side}", f"{peak:.2f}", f"{size:.0f}", "yes" if same else "NO"])
        image.unlink()
        shutil.rmtree(out)
    columns = ["image", "peak GiB", "MB written", "where the input is"]
    return Table("memory of predict, one georeferenced image", columns, rows), most, misplaced


def write_scene(path: Path, tile: NDArray[np.uint8], side: int) -> None:
    """A georeferenced image of side x side pixels: the tile again and again, in strips, so that it needs no memory."""
    about = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "bigtiff": "if_safer"}
    where = {"crs": CRS, "transform": from_origin(*ORIGIN, GSD, GSD), "tiled": True, "compress": "deflate", "zlevel": 1}
    across = np.tile(tile, (1, math.ceil(side / tile.shape[1]), 1))[:, :side]
    with rasterio.open(path, "w", **about, **where) as file:
        for top in range(0, side, tile.shape[0]):
            rows = min(tile.shape[0], side - top)
            file.write(across[:rows].transpose(2, 0, 1), window=Window(0, top, side, rows))


if __name__ == "__main__":
    main()
