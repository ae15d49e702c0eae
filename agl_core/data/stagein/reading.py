"""Reading a copy on the node, and the original where the copy turns out to be damaged."""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agl_core.data.stagein.staged import ABOUT
from agl_core.data.store import Store
from agl_core.errors import UserError


class StagedStore(Store):
    """The copy of a store; what cannot be read from it is read from the original, which must be the same store.

    The first time, one line on the error stream says so, and the copy is marked so that no later start finds it: it
    is then made anew.
    """

    def __init__(self, copy: Path, original: Path) -> None:
        """Open the copy in the folder `copy` of the store in the folder `original`.

        Raises:
            UserError: the copy cannot be read.
        """
        super().__init__(copy)
        self._original = original

    def _begin_process(self) -> None:
        super()._begin_process()
        self._whole: Store | None = None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in super().__getstate__().items() if name != "_whole"}

    def read_into(self, index: int, y: int, x: int, planes: NDArray[np.uint8], agl: NDArray[np.uint16]) -> None:
        """`Store.read_into`; a `UserError` of the copy is one only if the original cannot be read either."""
        try:
            super().read_into(index, y, x, planes, agl)
        except UserError as error:
            if self._whole is None:
                self._give_up_copy(str(error))
                self._whole = self._open_original()
            self._whole.read_into(index, y, x, planes, agl)

    def close(self) -> None:
        """`Store.close`, of both."""
        super().close()
        self._whole = None

    def _open_original(self) -> Store:
        original = Store(self._original)
        if original.digest != self.digest:
            raise UserError(
                f"store {original.path} was changed while a copy of it was read: "
                "start the run again when prepare has finished"
            )
        return original

    def _give_up_copy(self, problem: str) -> None:
        """Mark the copy, which all processes of the node read; who does it tells of it."""
        try:
            (self.path / ABOUT).unlink()
        except FileNotFoundError:  # done by another one
            return
        except OSError:
            pass  # at least it is told
        problem = problem.partition(";")[0]
        print(f"{problem}; what is wrong there is read from {self._original} instead", file=sys.stderr, flush=True)
