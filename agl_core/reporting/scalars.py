"""The same numbers for TensorBoard."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Scalars:
    """Mirrors step and validation events of one stage into TensorBoard's files below `folder`.

    Events of steps after `start` that an interrupted process left behind are hidden by TensorBoard's purge step, so
    the curves of a restarted run are continuous. With `folder` None nothing is written (other ranks).
    """

    def __init__(self, folder: Path | None, stage: str, start: int) -> None:
        self._stage = stage
        self._writer: Any = None
        if folder is not None:
            self._writer = SummaryWriter(str(folder / stage), purge_step=start + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the named scalars at `step`."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{self._stage}/{name}", value, step)

    def close(self) -> None:
        """Write what is buffered and close."""
        if self._writer is not None:
            self._writer.close()
