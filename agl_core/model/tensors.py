"""Tensors in files: safetensors with the user's umask, and with the operating system's own errors."""

import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` to the new file `path`; not atomic and not fsynced, which is the caller's part.

    safetensors makes its files readable by their owner alone and hides a full disk in an error of its own. Here the
    file gets the mode that the user's umask asks for, and the error of the operating system is raised.

    Raises:
        OSError: the file cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata=metadata)
    except SafetensorError as error:
        if (code := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    path.chmod(mode)
