"""A data set that nobody trains on."""

from pathlib import Path


def tables(folder: Path, places: int) -> str:
    """The tables of a data set, whose images nobody reads here."""
    (folder / "train").mkdir(parents=True)
    names = [f"t{number}" for number in range(places)]
    rows = [f"{name},{name}_AGL.tif,{name}_VFLOW.json,{name}_RGB.tif" for name in names]
    (folder / "geopose_train.csv").write_text("\n".join(["id,agl,json,rgb", *rows]) + "\n")
    table = ["id,city,gsd,place", *(f"{name},ARG,0.5,{name}" for name in names)]
    (folder / "metadata.csv").write_text("\n".join(table) + "\n")
    for name in names:
        for kind in ("AGL.tif", "VFLOW.json", "RGB.tif"):
            (folder / "train" / f"{name}_{kind}").touch()
    return str(folder)
