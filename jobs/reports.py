"""The verb `report`: what became of a run or of an ensemble, in report.md of its folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

from agl_core.config import ReportConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import read_json, write_text
from agl_core.reporting.events import read_events, seconds_spent
from agl_core.reporting.report import Report, Start, read_stage, render
from jobs.history import Incarnation, incarnations, read_history
from jobs.many import read_ensemble
from jobs.pipeline import REPORT
from jobs.runs import Run
from jobs.settings import flat

SETTINGS = ("recipe", "encoder", "encoder_weights", "seed", "fold", "folds", "fold_by", "precision", "data", "store")


def report(config: ReportConfig) -> None:
    """Write the report of the run that `config` names, and say where it is.

    Raises:
        UserError: there is no such run.
    """
    run = Run(Path(config.runs).absolute() / config.run)
    if not (run.exists() or run.is_ensemble()):
        files = [*run.path.parent.glob("*/config.yaml"), *run.path.parent.glob("*/ensemble.yaml")]
        known = sorted(path.parent.name for path in files)
        raise UserError(f"there is no run {config.run!r} in {config.runs}: it has {', '.join(known) or 'none'}")
    print(report_run(run))


def report_run(run: Run) -> Path:
    """Write report.md of a run or an ensemble, whole or not at all; returns its path."""
    write_text(run.report_file, render(read_report(run)))
    return run.report_file


def read_report(run: Run) -> Report:
    """All that is known about a run or an ensemble, from its folder alone."""
    history = incarnations(read_history(run.history))
    # The report that is being made has no end yet, which is no news.
    history = [one for one in history if one.end is not None or one.begin["job"] != REPORT]
    score = _score(run)
    if run.is_ensemble():
        starts = [_start(one, []) for one in history]
        content = read_ensemble(run)
        facts = {"runs": ", ".join(content.runs), "data": content.data, "unit": content.unit}
        return Report(run.name, "ensemble", facts, [], starts, score)
    config = run.config()
    starts = [_start(one, list(config.stages)) for one in history]
    events, spent = read_events(run.events), seconds_spent(run.events)
    stages = [read_stage(events, stage, run.finished(stage), spent.get(stage, 0.0)) for stage in config.stages]
    facts = {"configuration": config_digest(config), **{name: str(getattr(config, name)) for name in SETTINGS}}
    return Report(run.name, "run", facts, stages, starts, score)


def config_digest(config: TrainConfig) -> str:
    """What stands for the identity of a run: the same for two configurations that may continue one another."""
    identity = {".".join(path): value for path, value, counts in flat(config) if counts}
    order = list(config.stages)  # which sorting the keys would hide
    return hashlib.sha256(json.dumps([identity, order], sort_keys=True).encode()).hexdigest()[:16]


def _score(run: Run) -> dict[str, Any] | None:
    try:
        found = read_json(run.score_file)
    except UserError:
        return None
    return found if isinstance(found, dict) else None


def _start(one: Incarnation, stages: list[str]) -> Start:
    end = one.end or {}
    how = ", ".join(str(end[name]) for name in ("end", "why") if end.get(name))
    step = end.get("step", one.begin.get("step"))
    return Start(
        time=float(one.begin["time"]),
        job=str(one.begin["job"]),
        id=str(one.begin["id"]),
        step=step if one.begin["job"] in stages and isinstance(step, int) else None,
        end=how or "no end was written down: it still runs, or was killed with its machine",
        text=str(end.get("text", "")),
    )
