"""Images through the network and onto the disk: reading, forward passes and writing overlap, and memory is bounded.

Small images are decoded ahead, in threads, while others are predicted, and written behind. A large one is predicted
with no other in memory, and a scene is never in memory as a whole.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from agl_core.data.georeference import Georeference
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from agl_core.inference.images import Job
from agl_core.inference.predictor import NotFiniteError, Prediction, Predictor
from agl_core.inference.sharing import Claims
from agl_core.inference.source import RasterSource, open_image
from agl_core.inference.writer import PredictionWriter
from agl_core.reporting.progress import Progress

LARGE = 16 * 2**20
"""Pixels from which on an image is predicted with no other in memory."""

SCENE = 64 * 2**20
"""Pixels from which on an image is read in windows, and its heights written in strips."""

_BEHIND = 2  # images that wait to be written
_POLL = 0.1  # seconds between two looks at what other processes have not finished


@dataclass(frozen=True)
class Picture:
    """A decoded image: (H, W, 3) uint8, where it shows nothing, and where it lies."""

    rgb: NDArray[np.uint8]
    unknown: NDArray[np.bool_] | None
    georeference: Georeference


class Pipeline:
    """Predicts images, of which other processes predict some at the same time."""

    def __init__(
        self,
        predictor: Predictor,
        writer: PredictionWriter,
        claims: Claims,
        guard: Guard | None,
        progress: Progress,
        masked: bool,
    ) -> None:
        """masked: whether heights are unknown where an image shows nothing. progress: counts all images, also those
        that others predict."""
        self.predictor, self.writer, self.claims, self.guard = predictor, writer, claims, guard
        self.progress, self.masked = progress, masked
        self._told = 0  # notes of the predictor
        self._unreadable: dict[str, str] = {}  # why, by image

    def run(self, jobs: Sequence[Job]) -> None:
        """Predict the images that nobody else does, and wait until all are there but those that cannot be read.

        Raises:
            UserError: images that cannot be read, all of them, when the others are done; an image that cannot be
                predicted, at once.
            InterruptedRunError: the guard asked to leave before the end; every image is whole or not there.
        """
        waiting = list(jobs)
        while waiting:
            large: list[Job] = []
            busy: list[Job] = []
            before = self.progress.done
            self._overlapped(waiting, large, busy)
            for job in self._claimed(large, busy):
                self._alone(job)
            if self.asked:
                self._leave()
            if busy and self.progress.done == before:
                time.sleep(_POLL)
            waiting = busy
        if self._unreadable:
            raise UserError(_listed(list(self._unreadable.values()), self.progress.done))

    @property
    def asked(self) -> bool:
        """Whether the guard asks to leave."""
        return self.guard is not None and self.guard.requested

    def _leave(self, image: str = "") -> None:
        """Raise InterruptedRunError, unless all is done."""
        if image or self.progress.done < self.progress.total:
            told = f"{self.progress.done} of {self.progress.total} images are predicted"
            raise InterruptedRunError((self.guard and self.guard.signal) or "a signal", None, told)

    def _claimed(self, jobs: Iterable[Job], busy: list[Job]) -> Iterator[Job]:
        """The images that are neither finished nor others' by now, each claimed when it is asked for; `busy` gets those
        that others are at."""
        for job in jobs:
            if self.asked:
                return
            if not self.writer.finished(job.id):
                if not self.claims.take(job.id):
                    busy.append(job)
                    continue
                if not self.writer.finished(job.id):  # somebody may just have finished it
                    yield job
                    continue
                self.claims.give_back(job.id)
            self.progress.advance()

    def _overlapped(self, jobs: Iterable[Job], large: list[Job], busy: list[Job]) -> None:
        """Predict the images that are not large; `large` gets the others."""
        with (
            ThreadPoolExecutor(1) as writing,
            closing(self._read_ahead(self._claimed(jobs, busy))) as pictures,
        ):
            written: deque[tuple[Job, Future[None]]] = deque()
            for job, picture in pictures:
                if self.asked:
                    break
                if picture is None:
                    self.claims.give_back(job.id)
                    if job.id not in self._unreadable:
                        large.append(job)
                    continue
                prediction = self._predict(job, picture)
                written.append((job, writing.submit(self._write, job, prediction, picture)))
                if len(written) > _BEHIND:
                    self._done(*written.popleft())
            for job, future in written:
                self._done(job, future)

    def _done(self, job: Job, future: Future[None]) -> None:
        future.result()
        self.claims.give_back(job.id)
        self.progress.advance()

    def _read_ahead(self, jobs: Iterator[Job]) -> Generator[tuple[Job, Picture | None]]:
        """The images in order, each decoded while those before it are in use; a bounded number is in memory."""
        # Decoding JPEG 2000 takes longer than a forward pass on a GPU; on CPU the cores belong to the network.
        threads, most = (4, 8) if self.predictor.device.type == "cuda" else (1, 1)
        pool = ThreadPoolExecutor(threads)
        try:
            ahead = deque((job, pool.submit(self._read, job, LARGE)) for job in islice(jobs, most))
            while ahead:
                job, future = ahead.popleft()
                picture = future.result()
                ahead.extend((following, pool.submit(self._read, following, LARGE)) for following in islice(jobs, 1))
                yield job, picture
        finally:  # who leaves early does not wait for images that nobody has begun to read
            pool.shutdown(cancel_futures=True)

    def _read(self, job: Job, most: int) -> Picture | None:
        """The decoded image; None if it has more than `most` pixels, or cannot be read."""
        try:
            with open_image(job.path) as source:
                whole = 0, 0, source.height, source.width
                if source.height * source.width > most:
                    return None
                unknown = source.unknown(*whole) if self.masked else None
                return Picture(source.read(*whole), unknown, source.georeference)
        except UserError as error:
            self._unreadable[job.id] = str(error)
            return None

    def _predict(self, job: Job, picture: Picture) -> Prediction:
        with self._named(job):
            return self.predictor.predict(picture.rgb, job.city, job.gsd)

    def _write(self, job: Job, prediction: Prediction, picture: Picture) -> None:
        place = picture.georeference
        plain = not self.masked and not place.profile()  # as the challenge has it
        rgb = picture.rgb if self.writer.quicklook else None
        self.writer.write(job.id, prediction, None if plain else place, picture.unknown, rgb, job.gsd)

    def _alone(self, job: Job) -> None:
        """Predict a claimed large image."""
        picture = self._read(job, SCENE)
        if picture is not None:
            self._write(job, self._predict(job, picture), picture)
        elif job.id not in self._unreadable:
            self._scene(job)
        self.claims.give_back(job.id)
        if job.id not in self._unreadable:
            self.progress.advance()

    def _scene(self, job: Job) -> None:
        with (
            open_image(job.path) as source,
            self.writer.scene(job.id, source, job.gsd, self.masked) as files,
            self._named(job),
        ):

            def sink(top: int, agl_cm: NDArray[np.uint16], spread_cm: NDArray[np.uint16] | None = None) -> None:
                files.strip(top, agl_cm, spread_cm)
                share = (top + len(agl_cm)) / source.height
                self.progress.advance(0, **{job.id: f"{share:.0%}"})

            pose = self.predictor.predict_scene(_Watched(source, job.id, self), job.city, job.gsd, sink)
            files.finish(pose)

    @contextmanager
    def _named(self, job: Job) -> Iterator[None]:
        """Name the image where the network's answer is no number, and tell what the predictor has to say."""
        try:
            yield
        except NotFiniteError as error:
            raise UserError(f"image {job.id}: {error}") from None
        finally:
            for note in self.predictor.notes[self._told :]:
                self._told += 1
                self.progress.note(note)


def _listed(problems: list[str], done: int) -> str:
    if len(problems) == 1:
        return f"{problems[0]} ({done} other images are predicted)" if done else problems[0]
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return f"{len(problems)} images cannot be predicted ({done} others are):\n{lines}"


class _Watched:
    """A scene that is no longer read once the guard asks to leave."""

    def __init__(self, source: RasterSource, image: str, pipeline: Pipeline) -> None:
        self.height, self.width = source.height, source.width
        self._source, self._image, self._pipeline = source, image, pipeline

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """See `RasterSource.read`; raises InterruptedRunError when the guard asks to leave."""
        if self._pipeline.asked:
            self._pipeline._leave(self._image)
        return self._source.read(top, left, height, width)
