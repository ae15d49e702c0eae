"""Mixed precision, chosen from the device."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from agl_core.errors import UserError, valid_choice

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """The precision of forward passes on one device; weights and optimiser always stay float32."""

    name: str
    device: torch.device

    @staticmethod
    def choose(name: str, device: torch.device) -> "Precision":
        """Resolve `auto`: float32 on CPU, float16 on GPUs before Ampere (the V100 has no bfloat16), else bfloat16.

        Raises:
            UserError: an unknown name, or float16 on a CPU, which would need the gradient scaler where it does not pay.
        """
        valid_choice("precision", name, ["auto", *DTYPES])
        if name == "auto":
            if device.type != "cuda":
                name = "float32"
            else:
                name = "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
        if name == "float16" and device.type == "cpu":
            raise UserError("precision float16 needs a GPU: use bfloat16, float32 or auto on a CPU")
        return Precision(name, device)

    @property
    def scaled(self) -> bool:
        """Whether gradients must be scaled against underflow."""
        return self.name == "float16"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass."""
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.name])
