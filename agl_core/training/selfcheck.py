"""What the installed torch can do where it is: `python -m agl_core.training.selfcheck MODEL [ENCODER ...]` prints, as
JSON, what it is built for and how large networks are. A process of its own, since loading torch takes seconds.
"""

import json
import sys
from typing import Any

import torch

from agl_core.config import ModelConfig
from agl_core.errors import UserError
from agl_core.model.encoders import check_encoder
from agl_core.model.network import GeoposeNet
from agl_core.model.precision import Precision
from agl_core.model.unfilled import unfilled
from agl_core.training.parallel import Parallel

SIDE = 64  # of the matrices


def installed() -> dict[str, Any]:
    """Version of torch, the CUDA that it is built with (None: for CPUs alone), the architectures that it carries code
    for, the GPUs that it sees with their compute capabilities times ten, and NCCL's version."""
    gpus = range(torch.cuda.device_count())
    capabilities = [torch.cuda.get_device_capability(number) for number in gpus]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "architectures": torch.cuda.get_arch_list() if torch.version.cuda else [],
        "gpus": [torch.cuda.get_device_name(number) for number in gpus],
        "capabilities": [10 * major + minor for major, minor in capabilities],
        "nccl": _nccl(),
    }


def parameters(encoder: str, model: ModelConfig) -> int:
    """Numbers in the state of the network with this encoder; it gets no values.

    Raises:
        UserError: there is no such encoder, or the decoder cannot have it.
    """
    check_encoder(encoder)
    with unfilled():
        network = GeoposeNet(encoder, ["a"], model, encoder_weights="none")
    return sum(tensor.numel() for tensor in network.state_dict().values())


def compute(parallel: Parallel, precision: str) -> str:
    """Multiply two matrices and take the gradient on this process's device, in the precision that training would have;
    the name of that.

    Raises:
        UserError: the device does not have the precision.
        RuntimeError: the device does not compute, or not right.
    """
    chosen = Precision.choose(precision, parallel.device)
    left = torch.eye(SIDE, device=parallel.device, requires_grad=True)
    right = torch.arange(SIDE, dtype=torch.float32, device=parallel.device).repeat(SIDE, 1)
    with chosen.autocast():
        product = left @ right
    product.float().sum().backward()  # type: ignore[no-untyped-call]
    assert left.grad is not None
    expected = torch.full((SIDE, SIDE), SIDE * (SIDE - 1) / 2)
    if not torch.equal(product.detach().float().cpu(), right.cpu()) or not torch.allclose(left.grad.cpu(), expected):
        raise RuntimeError(f"a product of matrices in {chosen.name} is wrong on {parallel.device}")
    return chosen.name


def exchange(parallel: Parallel) -> bool:
    """Whether the sum of a number of each process is right in this one; all must call it."""
    values = torch.full((1024,), float(parallel.rank + 1), device=parallel.device)
    expected = parallel.world_size * (parallel.world_size + 1) / 2
    return bool((parallel.sum(values) == expected).all())


def _nccl() -> str:
    if not torch.version.cuda:
        return ""
    version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, version)) if isinstance(version, tuple) else str(version)


def main(model: str, encoders: list[str]) -> None:
    """Print `installed`, and the parameters of the network with each of the encoders, or why there is none."""
    found: dict[str, Any] = {**installed(), "parameters": {}, "unknown": {}}
    for encoder in encoders:
        try:
            found["parameters"][encoder] = parameters(encoder, ModelConfig(**json.loads(model)))
        except UserError as error:
            found["unknown"][encoder] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
