"""The CSV files of a data set: which tiles there are, where their files lie, their city and their gsd."""

import csv
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agl_core.errors import UserError, valid_choice

SPLITS = ("train", "test")
LONGEST_ID = 200


@dataclass(frozen=True)
class TileRecord:
    """One tile of a data set: its names, its city, metres per pixel, and the files that exist for it."""

    id: str
    city: str
    gsd: float
    rgb: Path
    agl: Path | None
    vflow: Path | None
    place: str | None


@dataclass(frozen=True)
class TileMetadata:
    """One row of metadata.csv: city, metres per pixel, and the place, if the file has such a column."""

    city: str
    gsd: float
    place: str | None


class InCity(Protocol):
    """Anything that lies in a city."""

    @property
    def city(self) -> str:
        """Name of the city."""


def cities(records: Iterable[InCity]) -> list[str]:
    """The cities of the records, each once, sorted: the order of the one-hot code."""
    return sorted({record.city for record in records})


def read_catalog(data: Path, split: str) -> list[TileRecord]:
    """Read `<data>/geopose_<split>.csv` and `<data>/metadata.csv`; every file listed exists when this returns.

    Files of the split "train" are id, agl, json (VFLOW; empty or no column: nadir images) and rgb; of "test" id
    and rgb. File names are relative to `<data>/<split>/`.

    Returns:
        The tiles of the split, sorted by id; `agl` and `vflow` are None in the split "test".

    Raises:
        UserError: when a CSV file is missing or damaged, lacks a column or a row, or lists a file that is missing.
    """
    data = Path(data)
    valid_choice("split", split, list(SPLITS))
    if not data.is_dir():
        raise UserError(f"there is no data set at {data}: give the folder of geopose_{split}.csv with --data")
    columns = ["id", "agl", "rgb"] if split == "train" else ["id", "rgb"]
    table, folder = data / f"geopose_{split}.csv", data / split
    rows = _read_rows(table, columns)
    if not rows:
        raise UserError(f"{table} lists no tiles: add rows of {', '.join(columns)}")
    metadata = read_metadata(data / "metadata.csv")
    without = [tile for tile in rows if tile not in metadata]
    if without:
        raise UserError(f"{data / 'metadata.csv'} has no row for {_listed(without)} of {table}: add the rows")

    records = []
    for tile, row in sorted(rows.items()):
        vflow = row.get("json", "") if split == "train" else ""
        about = metadata[tile]
        records.append(
            TileRecord(
                id=tile,
                city=about.city,
                gsd=about.gsd,
                rgb=folder / row["rgb"],
                agl=folder / row["agl"] if split == "train" else None,
                vflow=folder / vflow if vflow else None,
                place=about.place,
            )
        )
    _check_files(table, folder, records)
    return records


def read_metadata(path: Path) -> dict[str, TileMetadata]:
    """Read a metadata.csv (id, city, gsd and optionally place), by id.

    Raises:
        UserError: when the file is missing or damaged, lacks a column, or has an id twice or a gsd that is no length.
    """
    metadata = {}
    for tile, row in _read_rows(Path(path), ["id", "city", "gsd"]).items():
        try:
            gsd = float(row["gsd"])
        except ValueError:
            gsd = math.nan
        if not (math.isfinite(gsd) and gsd > 0):
            raise UserError(f"{path}: gsd of {tile} is {row['gsd']!r}: give metres per pixel, a number above 0")
        metadata[tile] = TileMetadata(row["city"], gsd, row.get("place") or None)
    return metadata


def _read_rows(path: Path, columns: list[str]) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by id, stripped of blanks; `columns` must exist and be filled in every row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            lines = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: a data set needs it, with the columns {', '.join(columns)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}); replace the file") from None

    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}: its first line must name {', '.join(columns)}")
    rows: dict[str, dict[str, str]] = {}
    for line, fields in lines:
        if None in fields:
            raise UserError(f"{path}, line {line}: more fields than the {len(header)} columns; mend the line")
        row = {name: value.strip() for name, value in fields.items()}
        empty = [name for name in columns if not row[name]]
        if empty:
            raise UserError(f"{path}, line {line}: {', '.join(empty)} is empty; fill it in or remove the line")
        _check_id(path, line, row["id"])
        if row["id"] in rows:
            raise UserError(f"{path}, line {line}: id {row['id']} is listed twice; remove one of the lines")
        rows[row["id"]] = row
    return rows


def _check_id(path: Path, line: int, tile: str) -> None:
    """An id becomes part of file names and of keys of the store."""
    if len(tile.encode()) > LONGEST_ID or tile.startswith(".") or "/" in tile or not tile.isprintable():
        raise UserError(
            f"{path}, line {line}: id {tile[:50]!r} cannot be part of a file name; use at most {LONGEST_ID} letters, "
            "digits, '_' or '-'"
        )


def _check_files(table: Path, folder: Path, records: list[TileRecord]) -> None:
    """Report all missing files at once. One listing of the folder: on a network disk thousands of stats take long."""
    listed = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [
        str(path.relative_to(folder))
        for record in records
        for path in (record.rgb, record.agl, record.vflow)
        if path is not None and not (path.name in listed if path.parent == folder else path.is_file())
    ]
    if missing:
        raise UserError(
            f"{len(missing)} file(s) listed in {table} do not exist in {folder}: {_listed(missing)}; "
            "copy them there or remove their lines"
        )


def _listed(names: list[str], most: int = 10) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
