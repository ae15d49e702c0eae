"""Configuration of the verbs that make maps of images, join, judge and show them."""

from dataclasses import dataclass

from agl_core.config.option import CHECKED, CHECKS, TTA, option

AUTO_UNIT = ("auto", "cm", "m")
_MAX_AGL = "highest AGL written, metres, by city (default: all others); not given: as the weights were trained with"
_HEIGHT_FACTOR = "what heights are multiplied with before they are clipped, by city (default: all others); not given: 1"
_CALIBRATION = "corrections that `evaluate --calibration` has found: its JSON file; keys that are given as well win"
_MEMBER_WEIGHTS = "weights of the members, in their order: 2,1,1; default: all alike"
_COMBINE = "how the members' heights are joined: their mean or their median, pixel by pixel"
_ARCHIVE = "also pack what is written into this flat .tar.gz or .tar, as the challenge wants it"


@dataclass
class PredictConfig:
    """`python launch.py predict`: write AGL and VFLOW for every image of a data set, a list, a pattern or a file."""

    run: str = option(
        "",
        "name of the run whose weights to use, or of several, A,B,..., that predict together; only paths of weights "
        "files do without",
        required=True,
    )
    runs: str = option("runs", "folder of all runs")
    weights: str = option(
        "best",
        "best, last, last-ema, those of a stage (<stage>/best, <stage>/last, <stage>/last-ema), or paths of weights "
        "files: A,B,...",
    )
    member_weights: str = option("", _MEMBER_WEIGHTS)
    combine: str = option("mean", _COMBINE, choices=("mean", "median"))
    members_at_once: str = option(
        "auto",
        "how many of the networks lie in the device's memory: all; one, the others wait in the host's; auto: all while "
        "they fit",
        choices=("auto", "all", "one"),
    )
    data: str = option("", "folder of the data set; or give --images")
    split: str = option(
        "test",
        "which images of the data set: those of geopose_test.csv, of geopose_train.csv, or the held-out fold of the "
        "run (of the first, if there are several)",
        choices=("test", "train", "held-out"),
    )
    images: str = option(
        "",
        "instead of a data set: an image of any size, a folder, a pattern in quotes ('tiles/*.tif'), or a list: a .txt "
        "file with a path a line, or a .csv file with the columns path and, where they differ, id, city and gsd",
    )
    city: str = option("", "the city of --images that are not in a .csv file with their cities, as the weights know it")
    gsd: float | None = option(
        None, "metres per pixel of --images that neither a .csv file nor their own georeference tells it of"
    )
    out: str = option(
        "",
        "folder to write the predictions to; those of the same weights, settings and images that it has already are "
        "kept, those of others removed; what its about.json does not list is never touched",
        required=True,
    )
    unit: str = option(
        "auto",
        "cm: uint16 centimetres and px/cm, as the challenge; m: float32 metres and px/m; auto: cm for a data set, m "
        "for --images",
        choices=AUTO_UNIT,
    )
    format: str = option(
        "tif", "of the heights: tif, GeoTIFF; cog, cloud-optimised GeoTIFF with overviews", choices=("tif", "cog")
    )
    uncertainty: bool = option(
        False,
        "also write <id>_SPREAD.tif: the standard deviation of the members' heights, or of a single one's views "
        "(--tta), pixel by pixel",
    )
    quicklook: bool = option(False, "also draw <id>_LOOK.png: image, heights with their scale bar, and flow arrows")
    archive: str = option("", _ARCHIVE)
    tta: str = option(
        "auto",
        "test-time augmentation: auto, as each member's training run was told; none; flips, 4 views; d4, all 8 "
        "symmetries of the square; scales, 3 magnifications; all, both: 24 views",
        choices=("auto", *TTA),
    )
    window: int | None = option(
        None,
        "predict in overlapping windows of this side, pixels; 0: whole images; default: whole images while the memory "
        "that they take, measured, is there, and windows otherwise",
    )
    overlap: int = option(256, "overlap of neighbouring windows, pixels")
    precision: str = option(
        "auto",
        "auto: the one that the training run was given, where this device has it, otherwise chosen as in training",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    max_agl: dict[str, float] = option(dict, _MAX_AGL)
    height_factor: dict[str, float] = option(dict, _HEIGHT_FACTOR)
    calibration: str = option("", _CALIBRATION)
    threads: int | None = option(None, "CPU threads of each process; default: all cores, shared among the processes")
    processes: int | None = option(
        None,
        "processes of this machine that share the images; default: those of the file of --cluster local, otherwise one "
        "for each GPU, one without GPUs",
    )
    cluster: str = option(
        "debug",
        "where to run: debug and local, on this machine; a name from cluster_configs/ or the path of a YAML file: as a "
        "job, which comes back when it is preempted",
    )
    job: str = option(
        "", "name of the job on a cluster, a folder below runs; default: predict-<name of the out folder>"
    )
    doctor: str = option("quick", CHECKED, choices=CHECKS)
    dry_run: bool = option(False, "show what would be predicted or submitted, and stop")


@dataclass
class EnsembleConfig:
    """`python launch.py ensemble`: average the predictions of several models."""

    members: str = option("", "folders of predictions of the same images, two or more: A,B,...", required=True)
    out: str = option(
        "",
        "folder to write the averages to; those of unchanged predictions that it has already are kept",
        required=True,
    )
    unit: str = option("cm", "unit of the members' files and of those written", choices=("cm", "m"))
    member_weights: str = option("", _MEMBER_WEIGHTS)
    combine: str = option("mean", _COMBINE, choices=("mean", "median"))
    uncertainty: bool = option(
        False, "also write <id>_SPREAD.tif: the standard deviation of the members' heights, pixel by pixel"
    )
    max_agl: dict[str, float] = option(
        dict, "highest AGL written, metres, by city (default: all others); not given: as the members have it"
    )
    height_factor: dict[str, float] = option(dict, _HEIGHT_FACTOR)
    calibration: str = option("", _CALIBRATION)
    archive: str = option("", _ARCHIVE)


@dataclass
class EvaluateConfig:
    """`python launch.py evaluate`: the official score of predictions on disk."""

    predictions: str = option("", "folder of the predictions (<id>_AGL.tif, <id>_VFLOW.json)", required=True)
    truth: str = option("", "folder of the truth (<id>_AGL.tif, <id>_VFLOW.json)", required=True)
    metadata: str = option(
        "",
        "CSV file with id, city and gsd; default: metadata.csv in the truth's folder or above it; without any, cities "
        "are the beginnings of the ids, and gsds those that the images were predicted with",
    )
    unit: str = option("auto", "unit of both folders' files; auto: of each what its files are", choices=AUTO_UNIT)
    subset: bool = option(
        False, "score the images that are predicted, such as those of a fold, and not all that have a truth"
    )
    above: float = option(2.0, "metres from which on a pixel counts as standing above the ground")
    details: bool = option(False, "print errors by height, of pixels above the ground, and of the worst images too")
    json: str = option("", "also write the score, all errors and the what-if table to this JSON file")
    csv: str = option("", "also write a row per image to this CSV file")
    markdown: str = option("", "also write the tables to this Markdown file")
    calibration: str = option(
        "",
        "also write to this JSON file what would correct such predictions: for each city the factor of its heights and "
        "the line of its scales; use it for other images than these",
    )


@dataclass
class RectifyConfig:
    """`python launch.py rectify`: move images and heights to the ground that they stand on."""

    predictions: str = option("", "folder of predictions, or of true AGL and VFLOW", required=True)
    images: str = option("", "folder of the RGB images; default: where they were when they were predicted")
    out: str = option("", "folder to write <id>_RGB.tif, <id>_AGL.tif and <id>_MASK.tif to", required=True)
    unit: str = option("auto", "unit of the predictions and of what is written; auto: theirs", choices=AUTO_UNIT)
    canvas: str = option(
        "input",
        "input: the pixels of the image; full: as many more at its sides as something has moved to",
        choices=("input", "full"),
    )
    holes: str = option(
        "mark",
        "what nobody sees from above: mark, black and unknown; fill: from the ground beside it; the mask tells in both",
        choices=("mark", "fill"),
    )
    format: str = option("tif", "tif: GeoTIFF; cog: cloud-optimised GeoTIFF with overviews", choices=("tif", "cog"))
    workers: int | None = option(None, "images at a time; default: one per core")


@dataclass
class QuicklookConfig:
    """`python launch.py quicklook`: draw predictions for the eye."""

    predictions: str = option("", "folder of predictions, or of true AGL and VFLOW", required=True)
    images: str = option("", "folder of the RGB images; default: where they were when they were predicted")
    out: str = option("", "folder to write <id>_LOOK.png to; default: that of the predictions")
    unit: str = option("auto", "unit of the predictions; auto: theirs", choices=AUTO_UNIT)
    ids: str = option("", "only these images: A,B,...; default: all")
    width: int = option(1024, "most pixels of each panel's longer side")


@dataclass
class ExportConfig:
    """`python launch.py export`: point clouds, heights of footprints, weights with their card, portable networks."""

    what: str = option(
        "",
        "points: a coloured point cloud of each image (LAZ, LAS, PLY); footprints: heights of polygons (GeoJSON); "
        "weights: safetensors with configuration, score and card; model: the network for other programs (ONNX, "
        "torch.export)",
        choices=("points", "footprints", "weights", "model"),
        required=True,
        positional="one",
    )
    out: str = option("", "folder to write to", required=True)
    format: str = option(
        "auto",
        "points: laz (default), las or ply; model: onnx (default) or pt2",
        choices=("auto", "laz", "las", "ply", "onnx", "pt2"),
    )
    predictions: str = option("", "points and footprints: folder of predictions, or of true AGL and VFLOW")
    images: str = option("", "points: folder of the RGB images; default: where they were when they were predicted")
    unit: str = option("auto", "unit of the predictions; auto: theirs", choices=AUTO_UNIT)
    every: int = option(1, "points: every n-th pixel in both directions")
    polygons: str = option(
        "", "footprints: file of the polygons (GeoJSON, GeoPackage, Shapefile, ...), of any coordinate system"
    )
    run: str = option("", "weights and model: name of the run")
    runs: str = option("runs", "folder of all runs")
    weights: str = option("best", "weights and model: best, last, last-ema, <stage>/best, ..., or a weights file")
