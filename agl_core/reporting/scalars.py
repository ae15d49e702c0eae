"""The same numbers for TensorBoard."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Scalars:
    """Mirrors step and validation events of one stage into TensorBoard's files below `folder`.

    Events of steps after `start` that an interrupted process left behind are hidden by TensorBoard's purge step, so
    the curves of a restarted run are continuous. With `folder` None nothing is written (other ranks). The files are
    made with the first scalars, so that a disk that refuses them is an error of `write` alone.
    """

    def __init__(self, folder: Path | None, stage: str, start: int) -> None:
        self._folder, self._stage, self._start = folder, stage, start
        self._writer: Any = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the named scalars at `step`.

        Raises:
            OSError: the disk refuses these, or refused earlier ones; TensorBoard then writes no more of this process.
        """
        if self._folder is None:
            return
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder / self._stage), purge_step=self._start + 1)
        for name, value in values.items():
            self._writer.add_scalar(f"{self._stage}/{name}", value, step)

    def close(self) -> None:
        """Write what is buffered and close; what the disk refuses is lost, which must not hide how the stage ended."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
