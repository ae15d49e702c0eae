"""From a model and images to predictions, on disk or, in Python, as arrays:

from agl_core.inference import load_model

model = load_model("runs/first")
prediction = model.predict(rgb, gsd=0.5, city="ARG")
print(prediction.agl.max(), prediction.pose.scale, prediction.pose.angle)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agl_core.inference.api import Model, load_model

__all__ = ["Model", "load_model"]


def __getattr__(name: str) -> Any:
    # Not imported with the package: whoever reads a folder of predictions need not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from agl_core.inference import api

    return getattr(api, name)
