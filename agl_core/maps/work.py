"""What the verbs that make a map of each image of a folder have in common: what is kept, threads, and problems."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.durable.lock import LockTakenError, file_lock
from agl_core.errors import UserError
from agl_core.files import read_json, write_json
from agl_core.inference.folder import PredictedImage
from agl_core.reporting.progress import Progress

ABOUT = "about.json"
_MOST_LISTED = 20
_TORN = re.compile(r"\..*\.[0-9a-f]{8}\.part(\.\w+)*")  # what is left of files whose writer was killed


class MapFolder:
    """A folder of maps, some files of each image: those that are as they would be made again are kept.

    The last of an image's files, by `kinds`, is written last: where it exists, all are complete and of the same making.
    `about.json` says what all were made of.
    """

    def __init__(self, folder: Path, format: str, kinds: Sequence[str]) -> None:
        self.folder, self.format, self.kinds = Path(folder), format, kinds

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else makes maps in this folder meanwhile; the torn files of those who were killed are removed.

        Raises:
            UserError: somebody does.
        """
        lock = self.folder / ".maps.lock"
        with ExitStack() as stack:
            try:
                stack.enter_context(file_lock(lock, patience=0))
            except LockTakenError:
                raise UserError(
                    f"{self.folder} is being written to by another call: wait for its end, or choose another --out"
                ) from None
            stack.callback(lock.unlink, missing_ok=True)
            for path in list(self.folder.iterdir()):
                if _TORN.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            yield

    def path(self, image: str, kind: str) -> Path:
        """Of a file of an image."""
        return self.folder / f"{image}{kind}"

    def clear(self, image: str) -> None:
        """Declare the maps of an image unfinished."""
        self.path(image, self.kinds[-1]).unlink(missing_ok=True)

    def keep(self, settings: Mapping[str, Any], sources: Mapping[str, Any]) -> set[str]:
        """The ids of `sources` whose maps are there and made with these settings of these sources; the others are
        cleared, and about.json says from now on what they are made of."""
        wanted = json.loads(json.dumps({"settings": settings, "images": sources}))
        before = self._about()
        known = before["images"] if before.get("settings") == wanted["settings"] else {}
        kept = {
            image
            for image, source in wanted["images"].items()
            if known.get(image) == source and all(self.path(image, kind).is_file() for kind in self.kinds)
        }
        for image in sources:
            if image not in kept:
                self.clear(image)
        about = {"format": self.format, **wanted, "images": {**known, **wanted["images"]}}
        if about != before:
            write_json(self.folder / ABOUT, about)
        return kept

    def _about(self) -> dict[str, Any]:
        try:
            about = read_json(self.folder / ABOUT)
        except UserError:  # none, or one that is damaged: nothing is known of what is there
            return {}
        whole = isinstance(about, dict) and about.get("format") == self.format and isinstance(about.get("images"), dict)
        return about if whole else {}


def source(image: PredictedImage, with_rgb: bool = True) -> dict[str, Any]:
    """What a map of an image is made of: the state of its files."""
    paths = {"agl": image.agl, "vflow": image.vflow, **({"rgb": image.rgb} if with_rgb and image.rgb else {})}
    return {"gsd": image.gsd, **{kind: _state(path) for kind, path in paths.items()}}


def _state(path: Path) -> list[int]:
    try:
        state = path.stat()
    except FileNotFoundError:  # reading it will say so
        return [-1, -1]
    return [state.st_size, state.st_mtime_ns]


def make_all(
    label: str,
    images: Sequence[PredictedImage],
    kept: set[str],
    make: Callable[[PredictedImage], None],
    threads: int,
    guard: Guard | None = None,
) -> None:
    """`make` the maps of all images that are not kept, `threads` at a time.

    Raises:
        UserError: what `make` has raised, for all images in one message; the others are made.
        InterruptedRunError: `guard`, who is asked before every image, has asked to leave.
    """
    done: list[str] = []
    todo = [image for image in images if image.id not in kept]

    def make_one(image: PredictedImage) -> str | None:
        if guard is not None and guard.requested:
            return None
        try:
            make(image)
        except UserError as error:
            return str(error)
        done.append(image.id)
        return None

    problems: list[str] = []
    with (
        ThreadPoolExecutor(threads) as pool,
        Progress(label, total=len(images), unit="images", start=len(images) - len(todo)) as progress,
    ):
        for problem in pool.map(make_one, todo):
            problems += [problem] if problem is not None else []
            progress.advance()
    if guard is not None and guard.requested and len(done) + len(problems) < len(todo):
        told = f"{len(images) - len(todo) + len(done)} of {len(images)} images are done"
        raise InterruptedRunError(guard.signal or "a signal", None, told)
    refuse(f"{label}: not all images could be done", problems)


def surveyed(images: Sequence[PredictedImage], survey: Callable[[PredictedImage], Iterable[str]]) -> list[str]:
    """What `survey` finds wrong with images, in their order; files are looked at in several threads."""
    with ThreadPoolExecutor(8) as pool:
        return [line for found in pool.map(lambda image: list(survey(image)), images) for line in found]


def refuse(title: str, problems: Sequence[str]) -> None:
    """Raise a `UserError` with all problems, if there is any."""
    if not problems:
        return
    if len(problems) == 1:
        raise UserError(problems[0])
    more = [f"and {len(problems) - _MOST_LISTED} more"] if len(problems) > _MOST_LISTED else []
    lines = [f"  - {line}" for line in [*problems[:_MOST_LISTED], *more]]
    raise UserError("\n".join([f"{title}: {len(problems)} problems", *lines]))


def without_rgb(images: Sequence[PredictedImage], folder: Path) -> list[str]:
    """A sentence on the images whose RGB is not found, if there are any."""
    ids = [image.id for image in images if image.rgb is None]
    if not ids:
        return []
    told = ", ".join(ids[:_MOST_LISTED]) + (f" and {len(ids) - _MOST_LISTED} more" if len(ids) > _MOST_LISTED else "")
    return [f"the images of {told} in {folder} are not found: give the folder of the RGB images with --images"]
