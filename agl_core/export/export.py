"""The verb `export`: point clouds, heights of footprints, weights with their card, portable networks."""

from agl_core.config import ExportConfig
from agl_core.errors import UserError, valid_choice

_FORMATS = {"points": ("laz", "las", "ply"), "footprints": (), "weights": (), "model": ("onnx", "pt2")}
_TAKES = {
    "points": ("predictions", "images", "unit", "every"),
    "footprints": ("predictions", "images", "unit", "polygons"),
    "weights": ("run", "weights"),
    "model": ("run", "weights"),
}


def export(config: ExportConfig) -> None:
    """Write what `config.what` says to `config.out`.

    Raises:
        UserError: something is missing, cannot be used, or has no meaning for what is exported.
    """
    valid_choice("export", config.what, list(_FORMATS))
    _check(config)
    # Each needs libraries that the others do not: they are imported only where they are used.
    if config.what == "points":
        from agl_core.export.points import export_points

        export_points(config)
    elif config.what == "footprints":
        from agl_core.export.footprints import export_footprints

        export_footprints(config)
    elif config.what == "weights":
        from agl_core.export.card import export_weights

        export_weights(config)
    else:
        from agl_core.export.portable import export_model

        export_model(config)


def _check(config: ExportConfig) -> None:
    formats = _FORMATS[config.what]
    if config.format != "auto" and config.format not in formats:
        have = f"choose one of {', '.join(formats)}" if formats else "leave --format out"
        raise UserError(f"{config.what} cannot be written as {config.format}: {have}")
    default = ExportConfig()
    for key in sorted({key for keys in _TAKES.values() for key in keys} - set(_TAKES[config.what])):
        if getattr(config, key) != getattr(default, key):
            raise UserError(f"{key} is given, but has no meaning for {config.what}: leave --{key} out")
    if "predictions" in _TAKES[config.what] and not config.predictions:
        raise UserError(f"{config.what} are made of predictions: give their folder with --predictions")
