"""`prepare`, killed again and again at drawn moments while its data set changes.

After every kill the store is opened with LMDB alone and judged: what has a record of completion must be there, whole,
once, and nothing else; what was done before and need not be done again must be there still. In the end all keys and
values must be those of a store that was made of the same files without being disturbed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lmdb
import numpy as np
import xxhash

from agl_core.config import WorldConfig
from agl_core.data.tiles import read_rgb, write_rgb
from agl_core.files import write_text
from agl_core.world.dataset import render_world
from jobs.snapshot import ROOT

# launch.py as it is, but with transactions that are small beside this small data set.
COMMAND = (
    "import sys; from agl_core.data.store import writer; writer._COMMIT_BYTES = 300000; "
    "from launch import main; sys.exit(main(sys.argv[1:]))"
)
GROUP, PARENT, CHILD = "all its processes", "the writing process", "a decoding process"
WAYS = [GROUP] * 6 + [PARENT] * 2 + [CHILD] * 2


class NotWholeError(AssertionError):
    """The store is not what it must be."""


def contents(store: Path) -> dict[bytes, bytes]:
    """All keys and values of the LMDB in the folder `store`; none if there is no file yet."""
    if not (store / "data.mdb").exists():
        return {}
    with lmdb.open(str(store), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


def judge(found: dict[bytes, bytes]) -> dict[str, tuple[str, Any]]:
    """Digest and provenance of each tile that is done, by id.

    Raises:
        NotWholeError: a tile with a record is not there as it was written, or there is something without a record.
    """
    found = dict(found)
    meta = json.loads(found.pop(b"meta", b'{"sealed": null}'))
    done = {key: json.loads(found.pop(key)) for key in sorted(found) if key.startswith(b"done/")}
    tiles = {}
    for key, record in done.items():
        entry = record["entry"]
        tile = entry["id"]
        if key != b"done/" + tile.encode():
            raise NotWholeError(f"{key!r} is the record of {tile}")
        digest = xxhash.xxh3_128()
        for row in range(-(-entry["height"] // 256)):
            for column in range(-(-entry["width"] // 256)):
                place = b"tile/" + tile.encode() + b"\0" + row.to_bytes(2, "big") + column.to_bytes(2, "big")
                value = found.pop(place, None)
                if value is None:
                    raise NotWholeError(f"{tile} is done, but sub-tile {row}, {column} is missing")
                if value[:8] != xxhash.xxh3_64_intdigest(value[8:]).to_bytes(8, "little"):
                    raise NotWholeError(f"{tile}: sub-tile {row}, {column} has another checksum")
                digest.update(value)
        if digest.hexdigest() != record["digest"]:
            raise NotWholeError(f"{tile} is not what its record says")
        tiles[tile] = (record["digest"], record["provenance"])
    if found:
        raise NotWholeError(f"{len(found)} values without a record: {sorted(found)[0]!r}, ...")
    if meta["sealed"] is not None and [entry["id"] for entry in meta["sealed"]["entries"]] != sorted(tiles):
        raise NotWholeError("the seal names other tiles than there are")
    return tiles


@dataclass
class DataSet:
    """A small world in TIFF and JPEG 2000 whose files come, go and change."""

    folder: Path
    draw: random.Random
    rows: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    """Tiles whose content has changed since the last whole run."""

    def build(self, tiles: int, size: int) -> None:
        """Render it."""
        render_world(WorldConfig(out=str(self.folder), tiles=tiles, size=size, test_share=0.1, workers=1))
        header, *lines = (self.folder / "geopose_train.csv").read_text().splitlines()
        for number, line in enumerate(lines):
            tile = line.split(",")[0]
            if number % 4 == 0:
                image = self.folder / "train" / f"{tile}_RGB.tif"
                write_rgb(image.with_suffix(".j2k"), read_rgb(image))
                image.unlink()
                line = line.replace("_RGB.tif", "_RGB.j2k")
            self.rows[tile] = line
        self._header = header
        self._write_table()

    def disturb(self) -> None:
        """Change, touch, remove and add some tiles."""
        for tile in self.draw.sample(sorted(self.rows), len(self.rows) // 2):
            what = self.draw.choice(["change", "change", "touch", "touch", "remove", "add"])
            image = next((self.folder / "train").glob(f"{tile}_RGB.*"))
            if what == "change":
                pixels = read_rgb(image)
                pixels ^= np.uint8(self.draw.randrange(1, 256))
                write_rgb(image, pixels)
                self.changed.add(tile)
            elif what == "touch":
                os.utime(image)
            elif what == "remove" and len(self.left_out) < len(self.rows) // 2:
                self.left_out.add(tile)
            else:
                self.left_out.discard(tile)
        self._write_table()

    def _write_table(self) -> None:
        lines = [line for tile, line in sorted(self.rows.items()) if tile not in self.left_out]
        write_text(self.folder / "geopose_train.csv", "\n".join([self._header, *lines]) + "\n")


class Attempt:
    """One `launch.py prepare`, in a session of its own."""

    def __init__(self, data: Path, store: Path, workers: int) -> None:
        words = ["prepare", "--data", str(data), "--store", str(store), "--workers", str(workers)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def end(self, *codes: int) -> int:
        """Wait for it and all its processes; it must end with one of `codes`, which is returned."""
        said = self.process.communicate(timeout=120)[0]  # ends when the last process has closed its end
        if self.process.returncode not in codes:
            raise NotWholeError(f"prepare has ended with {self.process.returncode}: {said}")
        return self.process.returncode

    def kill(self, way: str, draw: random.Random) -> bool:
        """Kill it, or a part of it; whether there was anything to be killed."""
        if self.process.poll() is not None:
            return False
        with suppress(ProcessLookupError):
            if way == GROUP:
                os.killpg(self.process.pid, signal.SIGKILL)
            elif way == PARENT:
                self.process.kill()
            else:
                while not (decoding := self._decoding()):
                    if self.process.poll() is not None:
                        return False
                    time.sleep(0.01)
                os.kill(draw.choice(decoding), signal.SIGKILL)
            return True
        return False

    def _decoding(self) -> list[int]:
        """Its decoding processes."""
        found = []
        with suppress(OSError):
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
        return sorted(found)


@dataclass
class Tally:
    """What was killed how often, and what the store was then."""

    kills: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)


def rehearse(folder: Path, kills: int, seed: int, tiles: int = 24, size: int = 300) -> Tally:
    """Kill `prepare` so many times; raises `NotWholeError` for the first thing that is wrong."""
    draw = random.Random(seed)
    data, store = DataSet(folder / "data", draw), folder / "store"
    data.build(tiles, size)
    began = time.monotonic()
    Attempt(data.folder, store, 2).end(0)
    usual = time.monotonic() - began
    shutil.rmtree(store)

    tally, before = Tally(), judge(contents(store))
    while sum(tally.kills.values()) < kills:
        workers, way = draw.choice([1, 2, 2, 3]), draw.choice(WAYS)
        attempt = Attempt(data.folder, store, workers)
        time.sleep(draw.uniform(0.2, 1.0) * usual)
        killed = attempt.kill(way, draw)
        if killed and way != CHILD:
            killed = attempt.end(-signal.SIGKILL, 0) != 0  # 0: it was just leaving, which nothing interrupts
        else:
            attempt.end(0)
        if killed:
            tally.kills[way] += 1
        after = judge(contents(store))
        _nothing_lost(before, after, data)
        tally.found["sealed" if _sealed(store) else "some tiles" if after else "no tile"] += killed
        data.disturb()
        if draw.random() < 0.15:
            shutil.rmtree(store)
        before = judge(contents(store))
    Attempt(data.folder, store, 2).end(0)
    Attempt(data.folder, folder / "undisturbed", 1).end(0)
    judge(contents(store))
    if contents(store) != contents(folder / "undisturbed"):
        raise NotWholeError("the store differs from one that was made undisturbed")
    return tally


def _sealed(store: Path) -> bool:
    return json.loads(contents(store).get(b"meta", b'{"sealed": null}'))["sealed"] is not None


def _nothing_lost(before: dict[str, tuple[str, Any]], after: dict[str, tuple[str, Any]], data: DataSet) -> None:
    """Tiles that were done and whose files had the same content since are there with the same values."""
    for tile, (digest, provenance) in before.items():
        if tile in data.left_out:
            continue
        image = next((data.folder / "train").glob(f"{tile}_RGB.*"))
        if provenance["content"][0] != xxhash.xxh3_128_hexdigest(image.read_bytes()):
            continue
        if tile not in after or after[tile][0] != digest:
            raise NotWholeError(f"{tile} was done, and is lost")


def main(argv: Sequence[str]) -> int:
    """Rehearse from the command line; the exit code is 0 only if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        try:
            tally = rehearse(Path(folder), asked.kills, asked.seed)
        except NotWholeError as error:
            print(f"WRONG: {error}")
            return 1
    for what, counts in (("kills", tally.kills), ("the store then", tally.found)):
        print(f"{what}: " + ", ".join(f"{count} {name}" for name, count in counts.most_common()))
    print("never a corrupt store, never a tile lost or doubled; the content is that of an undisturbed run, to the byte")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
