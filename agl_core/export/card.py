"""Weights to hand on: the file, its configuration, its score, and a card that says what it is and how to use it."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from agl_core.config import ExportConfig
from agl_core.errors import UserError
from agl_core.export.origin import Origin, read_origin
from agl_core.files import whole_file, writable_folder, write_json, write_text

WEIGHTS, CONFIG, CARD, SCORE = "model.safetensors", "config.yaml", "README.md", "score.json"
MARK = "geopose-card-1"
PLACES = ("data", "store", "stage_in", "runs", "weights_cache", "cluster")
"""Keys of a configuration that say where something is on the machine that trained: nobody else's business."""

_CONVENTIONS = """\
## What goes in, what comes out

| | |
|---|---|
| image | uint8 RGB, 3 bands, any size (as a tensor: sides that are multiples of 32); normalised inside the network |
| gsd | ground sampling distance, metres per pixel |
| city | {city} |
| AGL | height above ground of the surface seen in each pixel, metres |
| scale | pixels of displacement per metre of height; cot(elevation of the view) / gsd |
| angle | radians in [0, 2 pi); the network itself gives its sine and cosine |

A surface of height `AGL` seen at pixel `p` stands on the ground at `p + AGL * scale * (sin(angle), cos(angle))`, x to
the right and y downwards: angle 0 points down the image and grows counter-clockwise as seen. Heights are clipped to
{clip} after prediction. In the files of the challenge (`--unit cm`) heights are centimetres and the
scale is pixels per centimetre.
"""

_LOAD = """\
## How to load it

With the project that made it installed, in Python:

```python
import rasterio
from agl_core.inference import load_model

rgb = rasterio.open("image.tif").read((1, 2, 3)).transpose(1, 2, 0)
prediction = load_model("{weights}").predict(rgb, gsd={gsd:g}{city})
print(prediction.agl.max(), prediction.pose.scale, prediction.pose.angle)
```

or on the command line:

```sh
python launch.py predict --weights {weights} --images image.tif --gsd {gsd:g}{option} --out predictions
```

The file is plain safetensors and cannot execute code; its header holds the architecture, the cities and the
configuration.
"""

_LICENCE = """\
## Licence

None is stated yet: whoever trained these weights decides, and replaces this paragraph before handing them on. The
licence of the code does not cover them; the terms of the images and heights that they have learnt from{imagenet}
may.

<!-- {mark} -->
"""


def export_weights(config: ExportConfig) -> list[Path]:
    """Write the weights of a run, or a weights file, with config.yaml, README.md and, if there is a score, score.json
    to `config.out`; returns the files. Neither the weights' header nor config.yaml says where something was on the
    machine that trained. Each file appears whole or not at all, the card last.

    Raises:
        UserError: no such run or weights, weights that cannot be used, or a folder that cannot be written to.
    """
    origin = read_origin(config)
    folder = writable_folder(Path(config.out), "--out")
    written = [folder / WEIGHTS, folder / CONFIG]
    _check_own(folder)
    for name in (CARD, SCORE):  # of other weights, perhaps
        (folder / name).unlink(missing_ok=True)
    with whole_file(folder / WEIGHTS) as aside:
        _write_weights(origin, aside)
    write_text(folder / CONFIG, yaml.safe_dump(_shared(origin.config), sort_keys=False, allow_unicode=True))
    if scores := {name: score for name, score in _scores(origin) if score is not None}:
        write_json(folder / SCORE, scores)
        written.append(folder / SCORE)
    with (folder / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_text(folder / CARD, card(origin, digest))
    for remark in origin.remarks:
        print(remark)
    print(f"weights of {origin.name} with their card -> {config.out}")
    return [*written, folder / CARD]


def _check_own(folder: Path) -> None:
    """Raise a `UserError` if something else than exported weights would be overwritten, a run for instance."""
    path = folder / CARD
    foreign = [path] if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace") else []
    if not (folder / WEIGHTS).exists():
        foreign += [folder / name for name in (CONFIG, SCORE) if (folder / name).exists()]
    if foreign:
        raise UserError(f"{foreign[0]} is not of exported weights and would be lost: choose another folder with --out")


def _write_weights(origin: Origin, path: Path) -> None:
    """Copy the weights, their tensors byte by byte, with the configuration in their header as it is handed on.

    A safetensors file is the length of its header, 8 bytes, the header, JSON, and the tensors. Its keys are written in
    one order, which safetensors' own writer leaves to chance, so that the same weights make the same file.
    """
    metadata = {**origin.metadata, "config": _shared(origin.config)} if origin.config else origin.metadata
    with origin.path.open("rb") as source, path.open("wb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        about = {**header.pop("__metadata__"), "metadata": json.dumps(metadata)}
        text = json.dumps({"__metadata__": dict(sorted(about.items())), **header}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
        target.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, target, 2**24)


def card(origin: Origin, digest: str) -> str:
    """The text of README.md; digest: of the weights as they are handed on."""
    cities = ", ".join(origin.model.cities)
    if origin.model.config.use_city:
        city = f"one of {cities}; as a tensor its position in this list, from 0"
    else:
        city = "plays no part"
    first = origin.model.cities[0] if origin.model.config.use_city else ""
    clip = ", ".join(f"{value:g} m ({city})" for city, value in origin.max_agl.items())
    gsd = next((data.gsd[0] for data in origin.cities.values()), 0.5)
    imagenet = ", and those of ImageNet," if origin.config.get("encoder_weights") == "imagenet" else ""
    parts = [
        f"# {origin.name}: height above ground from one oblique overhead image\n",
        "From one satellite or aerial image, RGB, seen at an angle: the height above ground (AGL) of every pixel, and\n"
        "the image's vector flow, *scale* and *angle*.\n",
        "\n".join(_network(origin, digest)) + "\n",
        "\n".join(_data(origin)) + "\n",
        "\n".join(_score_tables(origin)) + "\n",
        _CONVENTIONS.format(city=city, clip=clip),
        _LOAD.format(
            weights=WEIGHTS,
            gsd=gsd,
            city=f', city="{first}"' if first else "",
            option=f" --city {first}" if first else "",
        ),
        _LICENCE.format(imagenet=imagenet, mark=MARK),
    ]
    return "\n".join(parts)


def _network(origin: Origin, digest: str) -> Iterator[str]:
    model, config, about = origin.model, origin.model.config, origin.metadata
    conditions = [name for name, used in (("city", config.use_city), ("gsd", config.use_gsd)) if used]
    attention = f", attention {config.attention}" if config.attention != "none" else ""
    rows = {
        "encoder": f"`{model.encoder_name}`",
        "decoder": f"{config.decoder}, channels {'-'.join(map(str, config.decoder_channels))}{attention}",
        "heads": f"heights: {config.agl_head}; scale: {config.scale_head}",
        "conditioned on": " and ".join(conditions) or "the image alone",
        "cities": ", ".join(model.cities),
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million",
        "weights": _state(about),
        "sha256": f"`{digest}`",
    }
    yield "## Network\n"
    yield "| | |\n|---|---|"
    yield from (f"| {name} | {value} |" for name, value in rows.items())


def _state(about: Mapping[str, Any]) -> str:
    if "stage" not in about:
        return "their file does not say at which step of which stage they were taken"
    average = ", an average of the weights of many steps" if about.get("ema") else ""
    return f"stage {about['stage']}, step {about.get('step', 'unknown')}{average}"


def _data(origin: Origin) -> Iterator[str]:
    config = origin.config
    yield "## Data\n"
    if not config:
        yield "The weights do not say from what data they were trained."
        return
    name = Path(str(config.get("data") or config.get("store") or "")).name
    yield f"Trained on {f'the data set `{name}`' if name else 'a data set without a name'}, {_held_out(config)}."
    if origin.tiles is not None:
        yield f"{origin.tiles[0]} images to train on, {origin.tiles[1]} to validate on."
    if config.get("encoder_weights"):
        begin = str(config["encoder_weights"])
        told = {"imagenet": "from ImageNet weights", "none": "from random weights"}
        recipe = config.get("recipe", "unknown")
        yield f"The encoder began {told.get(begin, f'from `{Path(begin).name}`')}; recipe {recipe}."
    if origin.cities:
        yield "\n| city | images, training and validation | gsd (m) | highest (m) |\n|---|---:|---:|---:|"
        for city, data in origin.cities.items():
            low, high = (f"{gsd:.3g}" for gsd in data.gsd)
            yield f"| {city} | {data.images} | {low if low == high else f'{low} - {high}'} | {data.highest:.1f} |"


def _held_out(config: Mapping[str, Any]) -> str:
    fold = config.get("fold")
    if fold is None or int(fold) < 0:
        return "with no fold held out"
    return f"fold {fold} of {config.get('folds')} (by {config.get('fold_by')}) held out for validation"


def _scores(origin: Origin) -> list[tuple[str, dict[str, Any] | None]]:
    return [("validation", origin.validation), ("test", origin.test)]


def _score_tables(origin: Origin) -> Iterator[str]:
    yield "## Score\n"
    titles = {
        "validation": "On the held-out fold, whose images chose these weights:",
        "test": "On the data set's test images, predicted with these weights:",
    }
    known = [(name, score) for name, score in _scores(origin) if score is not None]
    if not known:
        yield "None is known: these weights were not validated when they were written, nor their predictions scored."
    for name, score in known:
        yield f"{titles[name]}\n"
        yield "| city | images | R2 of heights | R2 of flow | score |\n|---|---:|---:|---:|---:|"
        for city, values in score["cities"].items():
            cells = (_number(values.get(key)) for key in ("agl_r2", "vflow_r2", "score"))
            yield f"| {city} | {values.get('images', '')} | {' | '.join(cells)} |"
        yield f"| all | | | | {_number(score['score'])} |\n"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "no truth"


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the places of the machine that trained."""
    shared = {key: value for key, value in config.items() if key not in PLACES}
    if "/" in str(shared.get("encoder_weights", "")):
        shared["encoder_weights"] = Path(shared["encoder_weights"]).name
    return shared
