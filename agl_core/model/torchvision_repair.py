"""Makes torchvision importable beside a CPU-only torch. `agl_core.model` imports this before smp and timm.

torchvision on PyPI is built against the CUDA torch. Beside a CPU torch its compiled operators do not load, and its
Python side then fails at import because two operators are unknown. Nothing here uses them, so declaring their
schemas is enough. Where torchvision loads natively nothing happens.
"""

import sys
from typing import Any

import torch

_libraries: list[torch.library.Library] = []  # a Library that is collected takes its schemas with it


def repair_torchvision() -> bool:
    """Import torchvision, declaring the missing operators if just that is what fails; True if it had to."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    else:
        return False
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    import torchvision  # noqa: F401

    return True


repair_torchvision()
