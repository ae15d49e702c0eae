"""What a study has found, as tables and a figure of a page, and the command line that studies have in common."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agl_core.errors import UserError
from agl_core.files import write_text
from benchmarks.harness import Table
from benchmarks.study import Study, run_study
from benchmarks.study_figure import figure
from benchmarks.table import markdown

FIGURES = {
    "score": ("score", 1.0, 3),
    "agl_r2": ("R2 of heights", 1.0, 3),
    "vflow_r2": ("R2 of flow", 1.0, 3),
    "angle_error": ("angle error, degrees", 1.0, 1),
    "scale_error": ("scale error, %", 100.0, 1),
    "agl_rmse": ("RMSE of heights, m", 1.0, 2),
}
"""Heading, factor and decimals of each figure of `study.score_weights`."""

WEIGHTS = {"last": "raw weights", "last-ema": "averaged weights (EMA)"}


def values(results: Sequence[dict[str, Any]], arm: str, stage: str, weights: str, name: str) -> dict[int, float]:
    """One figure of an arm, by seed, in the unit of the tables."""
    factor = FIGURES[name][1]
    own = {int(result["seed"]): result for result in results if result["arm"] == arm}
    return {seed: factor * own[seed]["figures"][stage][weights][name] for seed in sorted(own)}


def label(study: Study, arm: str, weights: str) -> str:
    """What the arm is, and which of its weights are meant where there are several."""
    title = next(known.title for known in study.arms if known.name == arm)
    return title if len(study.weights) == 1 else f"{title}, {WEIGHTS[weights]}"


def figures_table(study: Study, results: Sequence[dict[str, Any]], stage: str) -> Table:
    """Mean over the seeds, lowest and highest of every figure after one stage."""
    tiles, seeds = results[0]["tiles"], len({result["seed"] for result in results})
    rows = []
    for arm in study.arms:
        for weights in study.weights:
            alone = sum(result["arm"] == arm.name for result in results) == 1 < seeds
            row = [label(study, arm.name, weights) + (" (one seed)" if alone else "")]
            for name, (_, _, digits) in FIGURES.items():
                found = list(values(results, arm.name, stage, weights, name).values())
                low, high = min(found), max(found)
                row.append(f"{statistics.fmean(found):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
            rows.append(row)
    return Table(
        f"after {stage}: {tiles} tiles of unseen places, mean of {seeds} seeds (lowest to highest)",
        ["arm", *(heading for heading, _, _ in FIGURES.values())],
        rows,
    )


def differences_table(study: Study, results: Sequence[dict[str, Any]], stage: str) -> Table:
    """Differences of the pairs of interest: the score seed by seed, the other figures on average."""
    seeds = sorted({result["seed"] for result in results})
    rows = []
    for (arm, weights), (other, other_weights) in study.pairs:
        row = [f"{label(study, arm, weights)} - {label(study, other, other_weights)}"]
        for name, (_, _, digits) in FIGURES.items():
            one = values(results, arm, stage, weights, name)
            two = values(results, other, stage, other_weights, name)
            apart = [one[seed] - two[seed] for seed in one if seed in two]
            mean = f"{statistics.fmean(apart):+.{digits}f}"
            row += [", ".join(f"{value:+.3f}" for value in apart), mean] if name == "score" else [mean]
        rows.append(row)
    headings = [heading for heading, _, _ in FIGURES.values()]
    columns = ["difference", f"score, seeds {', '.join(map(str, seeds))}", "score, mean", *headings[1:]]
    return Table(f"differences after {stage}, runs of the same seed with each other", columns, rows)


def section(study: Study, results: Sequence[dict[str, Any]], picture: str) -> str:
    """All that the results say by themselves, in Markdown."""
    parts = [f"![Learning curves and scores of the {study.name}]({picture})\n"]
    for stage in results[0]["stages"]:
        parts += [markdown(figures_table(study, results, stage)), markdown(differences_table(study, results, stage))]
    return "\n".join(parts)


def put_section(text: str, name: str, section: str) -> str:
    """`text` with what stands between the marks of `name` replaced; both are put at the end where they are missing."""
    begin, end = f"<!-- {name}: written by the script from here -->", f"<!-- {name}: to here -->"
    block = f"{begin}\n\n{section.strip()}\n\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{block}\n".lstrip()
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise UserError(f"the page has the mark {begin!r} without {end!r}: put that behind what may be replaced")
    return f"{before}{block}{after}"


def write_page(page: Path, study: Study, results: Sequence[dict[str, Any]]) -> None:
    """Put tables and figure into the page, whose other text is left as it is, and the figure beside it."""
    picture = f"{study.name.replace(' ', '-')}.svg"
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# {study.name.capitalize()}\n"
    write_text(page, put_section(text, study.name, section(study, results, picture)))
    write_text(page.parent / picture, figure(study, results))


def command(description: str, make: Callable[[bool], Study], argv: Sequence[str] | None = None) -> None:
    """Run the study that `make` gives for --quick or not, print what it has found, and write the page asked for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the study; continued if begun"
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    parser.add_argument("--processes", type=int, default=2, help="runs side by side, of one thread each")
    parser.add_argument("--quick", action="store_true", help="a tiny study in seconds, to see that the script works")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put tables and figure into this Markdown page")
    given = parser.parse_args(argv)
    for name in ("seeds", "processes"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} is {getattr(given, name)}: give 1 or more")
    if given.page is not None and not given.page.absolute().parent.is_dir():
        parser.error(f"the folder of --page {given.page} does not exist: create it first")
    study = make(given.quick)
    try:
        results = run_study(study, given.out, given.seeds, given.processes)
        if given.page is not None:
            write_page(given.page, study, results)
    except UserError as error:
        raise SystemExit(str(error)) from None
    for stage in results[0]["stages"]:
        print(f"\n{figures_table(study, results, stage)}\n\n{differences_table(study, results, stage)}")
