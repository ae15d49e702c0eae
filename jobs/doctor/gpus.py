"""Types of NVIDIA's GPUs, as sites name them, and the code that they run.

Compute capabilities: NVIDIA's list, https://developer.nvidia.com/cuda-gpus. Code for one architecture (sm_70) runs on
later ones of the same major number; what is carried as PTX (compute_70) runs on all later ones.
"""

import re
from collections.abc import Iterable

CAPABILITIES = {
    "p100": 60, "gp100": 60, "p40": 61, "p4": 61, "1080": 61, "1080ti": 61, "titanxp": 61,
    "v100": 70, "v100s": 70, "gv100": 70, "volta": 70, "titanv": 70,
    "t4": 75, "2080": 75, "2080ti": 75, "rtx6000": 75, "rtx8000": 75, "turing": 75,
    "a100": 80, "a30": 80, "ampere": 80, "a10": 86, "a16": 86, "a40": 86, "a2": 86, "a5000": 86, "a6000": 86,
    "3080": 86, "3090": 86, "l4": 89, "l40": 89, "l40s": 89, "4090": 89, "ada": 89,
    "h100": 90, "h200": 90, "h800": 90, "gh200": 90, "hopper": 90,
    "b100": 100, "b200": 100, "gb200": 100, "b300": 103, "gb300": 103, "5090": 120,
}  # fmt: skip
"""By the words of a type or a node's feature: v100, tesla_v100-sxm2-32gb, nvidia_a100_80gb."""


def capability(name: str) -> int | None:
    """Compute capability of a type of GPU, times ten; None if the name says nothing."""
    for word in re.split(r"[^a-z0-9]+", name.lower()):
        known = CAPABILITIES.get(word) or CAPABILITIES.get(word.removeprefix("rtx").removeprefix("gtx"))
        if known is not None:
            return known
    return None


def runs_on(architectures: Iterable[str], capability: int) -> bool:
    """Whether code for these architectures (sm_70, sm_90a, compute_90) runs on a GPU of this capability."""
    for architecture in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)([af]?)", architecture)
        if found is None:
            continue
        number = int(found[2])
        if found[3]:
            if number == capability:
                return True
        elif number <= capability and (found[1] == "compute" or number // 10 == capability // 10):
            return True
    return False
