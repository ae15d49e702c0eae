"""`prepare --check`: whether a store holds what was written, value by value, and what the data set's files hold."""

import json
import shlex
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from agl_core.config import PrepareConfig
from agl_core.data.catalog import TileRecord, read_catalog
from agl_core.data.prepare.fitting import refuse_another, some
from agl_core.data.prepare.sources import Change, compare, look, reread
from agl_core.data.prepare.workers import in_order
from agl_core.data.store import Store
from agl_core.data.store.failures import explained
from agl_core.data.store.layout import done_records, shared_mapping
from agl_core.data.store.offsets import have_offsets, value_keys
from agl_core.errors import UserError
from agl_core.reporting.progress import Progress

MOST_REDONE = 50
"""Damaged tiles above which the whole store is made again."""


@dataclass
class Findings:
    """The ids of all tiles that are not as they should be."""

    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """What is wrong, in words; empty if nothing is."""
        parts = [
            (self.damaged, "damaged"),
            (self.missing, "missing"),
            (self.changed, "made of files that have changed since"),
            (self.surplus, "no longer in the data set"),
        ]
        return ", ".join(f"{len(tiles)} {what} ({some(tiles)})" for tiles, what in parts if tiles)


def check_store(config: PrepareConfig, folder: Path, workers: int) -> None:
    """Verify a sealed store and compare it with the data set; writes nothing, nor needs to be able to.

    Each tile that is not as it should be gets a line of its own; the last line says that all is well.

    Raises:
        UserError: when there is no sealed store, it is another data set's or of another unit, or anything is wrong with
            it; says what to do.
    """
    store = Store(folder)
    records = read_catalog(Path(config.data), "train")
    provenance = _provenance(store)
    refuse_another(folder, records, provenance, config.unit)
    findings = Findings()
    _verify(store, findings, workers)
    _compare(provenance, records, config.unit, findings, workers)
    if not have_offsets(folder, store.digest, len(value_keys(store.entries))):
        print(
            f"store {folder}: without an offsets.bin that fits, reads over a network are slow; prepare writes it anew"
        )
    if str(findings):
        raise UserError(f"store {folder}: of {len(store)} tiles, {findings}: {_remedy(config, folder, findings)}")
    print(f"store {folder}: all {len(store)} tiles are whole, and made of the files of {config.data} as they are")


def _verify(store: Store, findings: Findings, workers: int) -> None:
    """Look for damaged tiles."""
    numbers = range(len(store))
    with (
        Progress("check", total=len(store), unit="tiles") as progress,
        closing(in_order(store.verify, numbers, workers, lambda number: store.entries[number].id)) as verdicts,
    ):
        for entry, wrong in zip(store.entries, verdicts, strict=True):
            if wrong is not None:
                findings.damaged.append(entry.id)
                progress.note(wrong)
            progress.advance()


def _compare(
    provenance: dict[str, dict[str, Any]], records: list[TileRecord], unit: str, findings: Findings, workers: int
) -> None:
    """Look for tiles that a new store of the data set would have otherwise."""
    touched = []
    for record in records:
        if record.id not in provenance:
            findings.missing.append(record.id)
            continue
        change = compare(provenance[record.id], look(record, unit))
        if change is Change.CONTENT:
            findings.changed.append(record.id)
        elif change is Change.TIMES:
            touched.append(record)
    with (
        Progress("compare", total=len(touched), unit="tiles") as progress,
        closing(in_order(partial(reread, unit=unit), touched, workers, attrgetter("id"))) as found,
    ):
        for record, sources in zip(touched, found, strict=True):
            if sources.content != provenance[record.id].get("content"):
                findings.changed.append(record.id)
            progress.advance()
    findings.changed.sort()
    findings.surplus = sorted(provenance.keys() - {record.id for record in records})


def _provenance(store: Store) -> dict[str, dict[str, Any]]:
    """What each tile of the store was made of."""
    mapping = shared_mapping(store.path)
    with explained(store.path, "read"):
        found = (json.loads(value) for _, value in done_records(mapping.environment))
        return {record["entry"]["id"]: record["provenance"] for record in found}


def _remedy(config: PrepareConfig, folder: Path, findings: Findings) -> str:
    if len(findings.damaged) > MOST_REDONE:
        return f"delete the folder {folder} and run prepare again, perhaps with --store on another disk"
    words = ["python", "launch.py", "prepare", "--data", config.data]
    words += ["--store", config.store] if config.store else []
    words += ["--unit", config.unit] if config.unit != PrepareConfig().unit else []
    words += ["--redo", ",".join(findings.damaged)] if findings.damaged else []
    return f"run `{shlex.join(words)}`, which makes these again and nothing else"
