"""What one has to know to use an exported network."""

from dataclasses import asdict
from typing import Any, cast

from torch import Tensor

from agl_core.export.origin import Origin
from agl_core.model.network import STRIDE, GeoposeNet

FORMAT = "geopose-model-1"
SMALLEST, LARGEST = 2 * STRIDE, 4096 * STRIDE
"""Sides of the images that an exported network takes, pixels."""


def describe(origin: Origin) -> dict[str, Any]:
    """What a user of the exported network has to know, as JSON values."""
    network = origin.model
    use_city, use_gsd = network.config.use_city, network.config.use_gsd
    return {
        "format": FORMAT,
        "name": origin.name,
        "weights_sha256": origin.digest,
        "network": {"encoder": network.encoder_name, "model": asdict(network.config)},
        "cities": list(network.cities),
        "inputs": {
            "image": {
                "shape": [1, "height", "width", 3],
                "type": "uint8",
                "means": f"RGB, 0 to 255; height and width are multiples of {STRIDE}, {SMALLEST} to {LARGEST}: pad at "
                "the right and at the bottom by reflection, and cut the same off the heights",
            },
            "city": {
                "shape": [1],
                "type": "int64",
                "means": "position in cities, from 0" if use_city else "any number: the network does not look at it",
            },
            "gsd": {
                "shape": [1],
                "type": "float32",
                "means": "metres per pixel" + ("" if use_gsd or _heads_use_gsd(network) else "; plays no part"),
            },
        },
        "outputs": {
            "agl": {
                "shape": [1, "height", "width"],
                "type": "float32",
                "unit": "metres above ground",
                "means": "height of the surface seen in each pixel; clip it to 0 and max_agl_m",
            },
            "pose": {
                "shape": [1, 3],
                "type": "float32",
                "unit": "pixels per metre, sine, cosine",
                "means": "scale (clip it to 0), sin and cos of the angle, not normalised: angle = atan2(sin, cos)",
            },
        },
        "max_agl_m": origin.max_agl,
        "normalisation": {
            "where": "inside the network: give it plain uint8",
            "mean": cast(Tensor, network.mean).flatten().tolist(),
            "std": cast(Tensor, network.std).flatten().tolist(),
        },
        "geometry": "a surface of height agl at pixel p stands on the ground at p + agl * scale * (sin(angle), "
        "cos(angle)), x to the right, y downwards",
    }


def _heads_use_gsd(network: GeoposeNet) -> bool:
    return network.config.agl_head == "gsd" or network.config.scale_head == "prior"
