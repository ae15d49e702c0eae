"""The verb `report`: what became of one run, or of several side by side, in one HTML file."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agl_core.config import ReportConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import read_json, writable_folder, write_text
from agl_core.reporting.events import read_all, read_events, seconds_spent
from agl_core.reporting.report import Gallery, Report, Stage, read_stage
from jobs import survey
from jobs.many import read_ensemble
from jobs.pipeline import REPORT
from jobs.reportfacts import cluster_facts, now_of, read_settings, with_history
from jobs.runs import Run
from jobs.settings import flat
from jobs.standing import ENDING, RUNNING, UNKNOWN, RunStanding, assess

if TYPE_CHECKING:
    from agl_core.reporting.goodput.account import Account
    from agl_core.reporting.live.snapshot import Snapshot

SETTINGS = ("recipe", "encoder", "encoder_weights", "seed", "fold", "folds", "fold_by", "precision", "data", "store")
MOST_NAMES = 4  # of compared runs, in the name of their file


def report(config: ReportConfig) -> None:
    """Write the report on the runs that `config` names, and say where it is.

    Raises:
        UserError: there is no such run, or the file cannot be written there.
    """
    names = list(dict.fromkeys(name for name in config.run.split(",") if name))
    runs = list(dict.fromkeys(survey.find_run(config.runs, name) for name in names))
    out = _out(config, runs)
    from jobs.status import standings

    now = time.time()
    found = standings(runs, now)
    given = (config.predictions, config.truth)
    if any(given) and len(runs) > 1:
        raise UserError("--predictions and --truth are of one run: give one, or leave them out")
    told = [
        read_report(run, now, standing, _tiles(run, config.tiles, *given))
        for run, standing in zip(runs, found, strict=True)
    ]
    _write(out, told)
    print(out)


def report_run(run: Run) -> Path:
    """Write report.html of a run or an ensemble, whole or not at all; returns its path. Slurm is not asked: for the
    job at the end of a run, which knows that all before it is done."""
    now = time.time()
    standing = assess(survey.read(run), None, {}, now)
    _write(run.report_file, [read_report(run, now, standing, _tiles(run, ReportConfig().tiles), maker=True)])
    return run.report_file


def _write(path: Path, reports: Sequence[Report]) -> None:
    from agl_core.reporting.page.page import page

    write_text(path, page(reports))


def _out(config: ReportConfig, runs: Sequence[Run]) -> Path:
    if config.out:
        path = Path(config.out)
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the name of a file with --out")
    elif len(runs) == 1:
        path = runs[0].report_file
    else:
        more = [f"and-{len(runs) - MOST_NAMES}-more"] if len(runs) > MOST_NAMES else []
        path = runs[0].path.parent / f"report-{'-'.join([*(run.name for run in runs[:MOST_NAMES]), *more])}.html"
    writable_folder(path.absolute().parent, "--out")
    return path


def _tiles(run: Run, count: int, predictions: str = "", truth: str = "") -> Gallery:
    from jobs.gallery import gallery

    return gallery(run, count, predictions, truth)


def read_report(run: Run, now: float, standing: RunStanding, gallery: Gallery, maker: bool = False) -> Report:
    """All that is known about a run, an ensemble or a prediction at the unix time `now`, from its folder and where it
    stands. maker: the run's own job `report`, which is at work, makes it."""
    from jobs.status import told as told_of

    kind = "ensemble" if run.is_ensemble() else "prediction" if run.is_prediction() else "run"
    notes = [standing.note] if standing.note else []
    config, facts = _config(run, kind, notes)
    events: list[dict[str, Any]] = _borne(lambda: with_history(read_all(run.events), run), [], notes)
    snapshot: Snapshot | None
    told: Account | None
    snapshot, told = _borne(
        lambda: told_of(events, standing, run, now) if events else (None, None), (None, None), notes
    )
    return Report(
        name=run.name,
        kind=kind,
        path=str(run.path),
        made=now,
        version=project_version(),
        now=now_of(standing, run),
        alive=_at_work(told, [job.job for job in standing.jobs if job.state in (RUNNING, ENDING, UNKNOWN)]),
        maker=_at_work(told, [REPORT]) if maker else 0,
        facts=facts,
        stages=_borne(lambda: _stages(run, config), [], notes),
        account=told,
        snapshot=snapshot,
        score=_score(run, notes),
        gallery=gallery,
        settings=[] if config is None else read_settings(config),
        cluster=cluster_facts(run),
        notes=notes,
    )


def _at_work(account: "Account | None", jobs: Sequence[str]) -> int:
    """The number of the newest start of these jobs, which are at work, unless it has ended; 0 for none."""
    newest = next((life for life in reversed(account.lives if account else ()) if life.job in jobs), None)
    return newest.number if newest is not None and not newest.end else 0


def _borne(reader: Callable[[], Any], otherwise: Any, notes: list[str]) -> Any:
    """What `reader` makes of the events of a run; where they are damaged in a way that nobody has thought of, the rest
    of the report is made without, and says so."""
    try:
        return reader()
    except Exception as error:
        note = f"events.jsonl could not be read in all respects ({type(error).__name__}: {error})"
        if note not in notes:
            notes.append(note)
        return otherwise


def _config(run: Run, kind: str, notes: list[str]) -> tuple[TrainConfig | None, dict[str, str]]:
    """The configuration of a run, None where there is none or it cannot be read; and what it is, by name."""
    try:
        if kind == "ensemble":
            content = read_ensemble(run)
            return None, {"runs": ", ".join(content.runs), "data": content.data, "unit": content.unit}
        if kind == "prediction":
            asked = run.prediction()
            told = {name: str(getattr(asked, name)) for name in ("run", "weights", "data", "images", "out", "tta")}
            return None, {name: value for name, value in told.items() if value}
        config = run.config()
    except UserError as error:
        if str(error) not in notes:
            notes.append(str(error))
        return None, {}
    return config, {"configuration": config_digest(config), **{name: str(getattr(config, name)) for name in SETTINGS}}


def _stages(run: Run, config: TrainConfig | None) -> list[Stage]:
    """What is known of the stages; of a run whose configuration cannot be read, of those that its events name."""
    events, spent = read_events(run.events), seconds_spent(run.events)
    named = (str(event["stage"]) for event in events if event.get("kind") == "start")
    names = list(config.stages) if config is not None else list(dict.fromkeys(named))
    return [read_stage(events, name, _finished(run, name), spent.get(name, 0.0)) for name in names]


def _finished(run: Run, stage: str) -> bool:
    try:
        return run.finished(stage)
    except (UserError, AttributeError):
        return False


def config_digest(config: TrainConfig) -> str:
    """What stands for the identity of a run: the same for two configurations that may continue one another."""
    identity = {".".join(path): value for path, value, counts in flat(config) if counts}
    order = list(config.stages)  # which sorting the keys would hide
    return hashlib.sha256(json.dumps([identity, order], sort_keys=True).encode()).hexdigest()[:16]


def project_version() -> str:
    """The version of this project that is installed."""
    try:
        return version("agl")
    except PackageNotFoundError:
        return "not installed"


def _score(run: Run, notes: list[str]) -> dict[str, Any] | None:
    if not run.score_file.exists():
        return None
    try:
        found = read_json(run.score_file)
    except UserError as error:
        notes.append(str(error))
        return None
    return found if isinstance(found, dict) else None
