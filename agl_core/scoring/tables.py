"""The tables of a score: on a terminal, as Markdown, and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from agl_core.reporting.markdown import table as markdown_table
from agl_core.scoring.errors import ErrorSums
from agl_core.scoring.figures import Figures
from agl_core.scoring.score import Score

ALL = "all"


@dataclass(frozen=True)
class Sheet:
    """A table of text. note: what must be known of it. The row of `ALL`, if there is one, is the last."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""

    def shown(self) -> Table:
        """For a terminal."""
        table = Table(box=SIMPLE_HEAD, caption=self.note or None, caption_justify="left")
        for number, name in enumerate(self.columns):
            table.add_column(name, justify="right" if number else "left")
        for row in self.rows:
            total = row[0] == ALL and row is self.rows[-1]
            if total:
                table.add_section()
            table.add_row(*row, style="bold" if total else None)
        return table

    def markdown(self) -> str:
        """With its title as a heading."""
        note = [f"{self.note[:1].upper()}{self.note[1:]}."] if self.note else []
        return "\n\n".join([f"## {self.title}", markdown_table(self.columns, self.rows), *note])


def score_sheet(reached: Score, constant: Score, note: str = "") -> Sheet:
    """A row per city and one for all of them, with the best constant prediction's score beside."""
    rows = [
        [
            name,
            str(city.images),
            f"{city.agl_r2:.4f}",
            "no truth" if city.vflow_r2 is None else f"{city.vflow_r2:.4f}",
            f"{city.score:.4f}",
            f"{constant.cities[name].score:.4f}",
            _number(city.angle_error, ".1f", "deg"),
            _number(city.scale_error, ".4f", "px/m"),
        ]
        for name, city in reached.cities.items()
    ]
    images = sum(city.images for city in reached.cities.values())
    rows.append([ALL, str(images), "", "", f"{reached.score:.4f}", f"{constant.score:.4f}", "", ""])
    errors = ["median angle error", "median scale error"]
    columns = ["city", "images", "R2 heights", "R2 flow", "score", "best constant", *errors]
    return Sheet("Score", columns, rows, note)


def what_if_sheet(scores: Mapping[str, Score]) -> Sheet:
    """The score of each city and of all if part of the prediction were right."""
    cities = next(iter(scores.values())).cities
    rows = [[city, *(f"{score.cities[city].score:.4f}" for score in scores.values())] for city in cities]
    rows.append([ALL, *(f"{score.score:.4f}" for score in scores.values())])
    return Sheet("What the score would be", ["score with", *scores], rows)


def error_sheet(parts: Mapping[str, Figures]) -> Sheet:
    """A row of errors for each city and one for `ALL`."""
    above = next(iter(parts.values())).above
    columns = [
        "errors", "bias", "MAE", "RMSE", f"MAE from {above:g} m on", f"RMSE from {above:g} m on",
        "end-point mean", "end-point RMS", "angle", "scale",
    ]  # fmt: skip
    rows = [
        [
            name,
            _number(found.heights.bias, "+.2f", "m"),
            *_errors(found.heights),
            *_errors(found.above_ground),
            _number(found.end_point_error, ".2f", "px"),
            _number(found.end_point_rms, ".2f", "px"),
            _number(found.angle_error, ".1f", "deg"),
            _number(found.scale_error, ".4f", "px/m"),
        ]
        for name, found in parts.items()
    ]
    return Sheet("Errors", columns, rows, "angle and scale: medians over the images")


def height_sheet(parts: Mapping[str, Figures]) -> Sheet:
    """A row for each bin of true height: pixels and errors of all, and the RMSE of each city."""
    pooled = parts[ALL]
    cities = {name: found for name, found in parts.items() if name != ALL}
    rows = [
        [
            f"from {low:g} m on" if high is None else f"{low:g} to {high:g} m",
            f"{sums.pixels / pooled.heights.pixels:.1%}",
            _number(sums.bias, "+.2f", "m"),
            *_errors(sums),
            *(_number(found.by_height[low, high].rmse, ".2f", "m") for found in cities.values()),
        ]
        for (low, high), sums in pooled.by_height.items()
    ]
    columns = ["true height", "pixels", "bias", "MAE", "RMSE", *(f"RMSE {name}" for name in cities)]
    return Sheet("Errors by true height", columns, rows)


def worst_sheet(images: Sequence[Mapping[str, Any]]) -> Sheet:
    """A row for each of `images` (values of `image_values`)."""
    rows = [
        [
            image["id"],
            image["city"],
            f"{image['lost']:.4f}",
            _number(image["score"], ".4f"),
            _number(image["bias"], "+.2f", "m"),
            _number(image["rmse"], ".2f", "m"),
            _number(image["end_point_error"], ".2f", "px"),
            _number(image["angle_error"], ".1f", "deg"),
            _number(image["scale_error"], ".4f", "px/m"),
        ]
        for image in images
    ]
    columns = ["image", "city", "lost", "own score", "bias", "RMSE", "end-point", "angle error", "scale error"]
    note = "lost: what the image takes away from a perfect score; that of all images is 1 - score"
    return Sheet("The images that cost most", columns, rows, note)


def csv_text(images: Sequence[Mapping[str, Any]]) -> str:
    """A row for each image (values of `image_values`), numbers in full; what is not known is empty."""
    text = io.StringIO()
    rows = [_flat(image) for image in images]
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(image: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values under joined names: above_mae, mae_0_1 (metres of true height)."""
    flat: dict[str, Any] = {}
    for name, value in image.items():
        if name == "above":
            flat |= {f"above_{key}": number for key, number in value.items()}
        elif name == "by_height":
            for part in value:
                low, high = part["from"], part["to"]
                place = f"{low:g}_up" if high is None else f"{low:g}_{high:g}"
                flat |= {f"{key}_{place}": part[key] for key in ("pixels", "bias", "mae", "rmse")}
        else:
            flat[name] = value
    return flat


def _errors(sums: ErrorSums) -> list[str]:
    return [_number(sums.mae, ".2f", "m"), _number(sums.rmse, ".2f", "m")]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}} {unit}".rstrip()
