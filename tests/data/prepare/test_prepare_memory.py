"""The memory of `prepare` does not depend on how many tiles there are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agl_core.data.catalog import TileRecord
from agl_core.data.prepare import decode
from agl_core.data.prepare.decode import BadTile, EncodedTile
from agl_core.data.tiles import write_agl, write_rgb
from jobs.snapshot import ROOT

SIZE = 512
TILE_MB = 5 * SIZE * SIZE / 1e6

# Transactions are committed after two tiles, so that what they hold does not hide what grows.
PREPARE = """
import sys
from functools import partial
from pathlib import Path
from agl_core.config import PrepareConfig
from agl_core.data.prepare import ingest
from agl_core.data.store import writer
from tests.data.prepare.test_prepare_memory import noted, peak_mb
data, peaks = sys.argv[1:]
if __name__ == "__main__":
    writer._COMMIT_BYTES = 2_000_000
    ingest.encode = partial(noted, peaks=Path(peaks))
    ingest.prepare(PrepareConfig(data=data, workers=2, codec="raw"))
    (Path(peaks) / "writer").write_text(str(peak_mb()))
"""


def peak_mb() -> float:
    """The most memory that this process has had, in MB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in status if line.startswith("VmHWM"))


def noted(record: TileRecord, peaks: Path, unit: str, codec: str) -> EncodedTile | BadTile:
    """`encode`, and leave the peak of this process up to the tile before in a file."""
    (peaks / str(os.getpid())).write_text(str(peak_mb()))
    return decode.encode(record, unit, codec)


def prepared(folder: Path, count: int) -> list[float]:
    """Prepare so many tiles, which are the same few files; returns the peaks of the writer and of the decoders, MB."""
    train, peaks = folder / "train", folder / "peaks"
    train.mkdir(parents=True)
    peaks.mkdir()
    rng = np.random.default_rng(0)
    write_rgb(train / "x.tif", rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    write_agl(train / "x_AGL.tif", rng.integers(0, 5000, (SIZE, SIZE)).astype(np.uint16), "cm")
    tiles = [f"A_{number:03d}" for number in range(count)]
    for tile in tiles:
        os.link(train / "x.tif", train / f"{tile}.tif")
        os.link(train / "x_AGL.tif", train / f"{tile}_AGL.tif")
    (folder / "geopose_train.csv").write_text("id,agl,rgb\n" + "".join(f"{t},{t}_AGL.tif,{t}.tif\n" for t in tiles))
    (folder / "metadata.csv").write_text("id,city,gsd\n" + "".join(f"{t},A,0.5\n" for t in tiles))
    subprocess.run([sys.executable, "-c", PREPARE, str(folder), str(peaks)], cwd=ROOT, check=True)
    writer, decoders = peaks / "writer", [path for path in peaks.iterdir() if path.name != "writer"]
    assert len(decoders) == 2
    return [float(writer.read_text()), max(float(path.read_text()) for path in decoders)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
def test_neither_the_writer_nor_a_decoder_needs_more_memory_for_twenty_times_the_tiles(tmp_path: Path) -> None:
    few, many = prepared(tmp_path / "few", 8), prepared(tmp_path / "many", 160)
    for small, large in zip(few, many, strict=True):
        assert large < small + 25 * TILE_MB, (few, many)  # it would hold 152 tiles more
