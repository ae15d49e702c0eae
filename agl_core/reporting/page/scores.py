"""The score of the predictions, as score.json has it: by city beside the best constant, and what it would be if."""

from collections.abc import Mapping
from typing import Any

from agl_core.reporting.page.markup import NOTHING, Markup, Row, el, join, table
from agl_core.reporting.report import Report, number


def score_section(report: Report) -> Markup:
    """Both tables; nothing where nothing was scored."""
    score = report.score
    if score is None or not number(score.get("score")):
        return NOTHING
    about = "Of the predicted test images, as the challenge scores them: from the files, all images of a city pooled."
    return join([el("p", about, class_="about"), _cities(score), _what_if(score), _errors(score)])


def mapping(value: Any) -> Mapping[str, Any]:
    """A value of JSON that should be an object; nothing where it is not."""
    return value if isinstance(value, dict) else {}


def _cities(score: Mapping[str, Any]) -> Markup:
    constant = mapping(score.get("best_constant"))
    of_constant = mapping(constant.get("cities"))
    cities = {str(name): mapping(city) for name, city in mapping(score.get("cities")).items()}
    rows: list[list[Any]] = [
        [
            name,
            _count(city.get("images")),
            told(city.get("agl_r2")),
            told(city.get("vflow_r2"), "no truth"),
            told(city.get("score")),
            told(mapping(of_constant.get(name)).get("score")),
            told(city.get("rmse"), form=".2f", unit=" m"),
            told(city.get("end_point_error"), form=".2f", unit=" px"),
            told(city.get("angle_error"), form=".1f", unit="°"),
            told(city.get("scale_error"), form=".4f", unit=" px/m"),
        ]
        for name, city in cities.items()
    ]
    everything = mapping(score.get("all"))
    images = sum(city["images"] for city in cities.values() if isinstance(city.get("images"), int))
    rows.append(
        Row(
            [
                "all",
                _count(images),
                "",
                "",
                told(score.get("score")),
                told(constant.get("score")),
                told(everything.get("rmse"), form=".2f", unit=" m"),
                told(everything.get("end_point_error"), form=".2f", unit=" px"),
                told(everything.get("angle_error"), form=".1f", unit="°"),
                told(everything.get("scale_error"), form=".4f", unit=" px/m"),
            ],
            "total",
        )
    )
    head = [
        "city", "images", "R² heights", "R² flow", "score", "best constant", "RMSE", "end-point error", "angle error",
        "scale error",
    ]  # fmt: skip
    note = (
        "Best constant: what the best single height and pose per city would reach. RMSE of heights; end-point error: "
        "mean length of the difference of the flows; angle and scale: medians over the images."
    )
    return table(head, rows) + el("p", note, class_="note")


def _what_if(score: Mapping[str, Any]) -> Markup:
    """What the score would be if part of the predictions were right."""
    changes = {str(name): mapping(one) for name, one in mapping(score.get("what_if")).items()}
    changes = {name: one for name, one in changes.items() if number(one.get("score"))}
    if not changes:
        return NOTHING
    first = next(iter(changes.values()))
    reached = float(first["score"])
    cities = [str(city) for city in mapping(first.get("cities"))]
    rows = [
        [
            name,
            *(told(mapping(one.get("cities")).get(city)) for city in cities),
            told(one["score"]),
            "" if one is first else f"{one['score'] - reached:+.4f}",
        ]
        for name, one in changes.items()
    ]
    about = (
        "Each line makes one thing right and leaves the rest as it was predicted: where most is gained, most is lost."
    )
    return join(
        [
            el("h3", "What the score would be"),
            el("p", about, class_="note"),
            table(["with", *cities, "score", "gained"], rows),
        ]
    )


def _errors(score: Mapping[str, Any]) -> Markup:
    """Errors of the heights by true height, where they were measured."""
    bins = mapping(score.get("all")).get("by_height")
    rows = []
    for part in bins if isinstance(bins, list) else []:
        one = mapping(part)
        if number(one.get("from")) and one.get("pixels"):
            high = one.get("to")
            place = f"{one['from']:g} to {high:g} m" if number(high) else f"from {one['from']:g} m on"
            values = [told(one.get(name), form=".2f", unit=" m") for name in ("bias", "mae", "rmse")]
            rows.append([place, _count(one["pixels"]), *values])
    if not rows:
        return NOTHING
    head = ["true height", "pixels", "bias", "MAE", "RMSE"]
    return el("details", el("summary", "Errors by true height"), table(head, rows))


def _count(value: Any) -> str:
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) and not isinstance(value, bool) else ""


def told(value: Any, without: str = "", form: str = ".4f", unit: str = "") -> str:
    """A number of JSON; `without` where there is none."""
    return f"{value:{form}}{unit}" if number(value) else without
