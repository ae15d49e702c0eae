"""This process among the others: its rank, its device, and the few collectives that training needs."""

import atexit
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

from agl_core.durable.exits import InterruptedRunError, PeerLostError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from agl_core.machine import cores
from agl_core.reporting.startup import stopwatch
from agl_core.training.heartbeat import Heartbeat
from agl_core.training.memory import MemoryShortageError

PATIENCE = timedelta(days=1)

# Every gloo group of this process, kept until it ends. gloo's thread takes the interpreter's lock to let go of a tensor
# that it has reduced. If the last to let go of the group is the reducer of DistributedDataParallel, which a traceback
# may keep alive, it waits for that thread to end while holding the lock, and neither ever goes on (seen with torch
# 2.13). Letting go of the group itself does not hold the lock.
_groups: list[Any] = []
atexit.register(_groups.clear)


@dataclass
class Parallel:
    """One process of `world_size`; as a context manager it owns the process group.

    With one process there is no group and every collective is the identity. `init_method` is a `tcp://` or `file://`
    address that all processes of the group share and that no other group has used. `needs_gpu` refuses a machine
    without a usable GPU, where training would crawl along, and with other last bits: RuntimeError.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    init_method: str | None = None
    needs_gpu: bool = False
    device: torch.device = field(init=False)
    _control: Any = field(init=False, repr=False, default=None)
    _abandoned: bool = field(init=False, repr=False, default=False)
    _heartbeat: Heartbeat | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if torch.cuda.is_available():
            visible = torch.cuda.device_count()
            if self.local_rank >= visible > 1:
                raise UserError(
                    f"this machine shows {visible} GPUs for {self.local_rank + 1} or more processes: set "
                    f"cluster.processes={visible}"
                )
            # A cluster may show each process its own GPU alone, which then has number 0.
            self.device = torch.device("cuda", self.local_rank % visible)
        elif self.needs_gpu:
            raise RuntimeError(
                f"no GPU can be used on {socket.gethostname()}, though this job has asked for some: the driver does "
                "not answer, or this torch is not built for it"
            )
        else:
            self.device = torch.device("cpu")

    def __enter__(self) -> "Parallel":
        stopwatch.begin()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            # Errors of NCCL must reach this process as exceptions. By default torch ends it, with all that it holds.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        stopwatch.mark("device")
        if self.world_size > 1:
            cuda = self.device.type == "cuda"
            with self.exchanging():  # one of them may die before all have met
                dist.init_process_group(
                    "nccl" if cuda else "gloo",
                    init_method=self.init_method,
                    rank=self.rank,
                    world_size=self.world_size,
                    device_id=self.device if cuda else None,
                )
                # What the processes agree on travels between CPUs: it must not wait for a GPU, and gloo notices within
                # a tenth of a second that the other side of a connection is gone. It does not give up when the first
                # process waits for a disk: hanging is the watchdog's business.
                self._control = dist.new_group(backend="gloo", timeout=PATIENCE)
            _groups.extend([dist.group.WORLD, self._control])
            if cuda:
                self._heartbeat = Heartbeat(self._pulse_store(), self.rank, self.world_size, self.abandon)
                self._heartbeat.start()
        stopwatch.mark("rendezvous")
        return self

    def abandon(self) -> None:
        """Give up on the other processes: end what NCCL waits for, so that the GPU is free again. What is being
        computed is spoilt, and no further exchange succeeds, so the step is not taken."""
        self._abandoned = True
        if self.device.type == "cuda" and self.world_size > 1:
            distributed_c10d._get_default_group().abort()

    def fail(self) -> None:
        """Tell the others that this process cannot go on, for a reason of its own, and give up on them: they wait for
        it in an exchange, and would not notice that it leaves (see `Heartbeat`). They lose a peer, and save."""
        if self._heartbeat is not None:
            self._heartbeat.fail()
        self.abandon()

    def _pulse_store(self) -> Any:
        """A store in memory: one in a file, where the processes of one machine have met, would grow for ever."""
        if self.init_method is not None and self.init_method.startswith("tcp://"):
            return distributed_c10d._get_default_store()
        tcp_store, port = cast(Any, dist).TCPStore, 0
        if self.first:
            store = tcp_store("127.0.0.1", 0, self.world_size, is_master=True, wait_for_workers=False)
            port = store.port
        port = int(self.text_of_first(str(port)))
        return store if self.first else tcp_store("127.0.0.1", port, self.world_size, is_master=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._heartbeat is not None:
            if _alone(error):
                self._heartbeat.fail()
            self._heartbeat.close()
        if dist.is_initialized():
            if kind is not None and self.device.type == "cuda":
                dist._abort_process_group()  # type: ignore[attr-defined]  # peers may never join the shutdown
            else:
                dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with averaged gradients; buffers are left to `agl_core.training.batchnorm`."""
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            # Its successor does not exist in the last versions of torch that support the V100.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            return DistributedDataParallel(
                model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def sum(self, values: Tensor) -> Tensor:
        """`values` of all processes added up, in place; every process must call it with the same shape.

        Raises:
            PeerLostError: another process is gone.
        """
        if self.world_size > 1:
            with self.exchanging():
                dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """The `values` of all processes in the order of their ranks; CPU tensors of one shape and type everywhere.

        Raises:
            PeerLostError: another process is gone.
        """
        if self.world_size == 1:
            return [values]
        if self._abandoned:
            raise PeerLostError("this process has given up on the others")
        found = [torch.empty_like(values) for _ in range(self.world_size)]
        with self.exchanging():
            dist.all_gather(found, values, group=self._control)
        if self._abandoned:
            raise PeerLostError("this process has given up on the others")
        return found

    def to_first(self, values: Tensor, rank: int) -> Tensor:
        """The `values` of process `rank` in the first one; elsewhere this process's own. CPU tensors of one shape and
        type in both; the other processes have nothing to do with it and need not call it.

        Raises:
            PeerLostError: the other process is gone.
        """
        if rank == 0 or self.rank not in (0, rank):
            return values
        if self._abandoned:
            raise PeerLostError("this process has given up on the others")
        with self.exchanging():
            if not self.first:
                dist.send(values, dst=0, group=self._control)
                return values
            found = torch.empty_like(values)
            dist.recv(found, src=rank, group=self._control)
        if self._abandoned:
            raise PeerLostError("this process has given up on the others")
        return found

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process, the same answer everywhere."""
        return any(bool(value) for value in self.gather(torch.tensor([int(flag)])))

    def text_of_first(self, text: str) -> str:
        """The `text` (up to 256 bytes of UTF-8) that the first process gave, in all of them."""
        values = torch.zeros(256, dtype=torch.uint8)
        encoded = text.encode()
        values[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        return bytes(self.gather(values)[0].tolist()).rstrip(b"\0").decode()

    def any_text(self, text: str) -> str:
        """The first `text`, in the order of ranks, that is not empty, in all processes; empty if all are."""
        encoded = text.encode()
        lengths = [int(length) for length in self.gather(torch.tensor([len(encoded)]))]
        if not any(lengths):
            return ""
        values = torch.zeros(max(lengths), dtype=torch.uint8)
        values[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        first = next(rank for rank, length in enumerate(lengths) if length)
        return bytes(self.gather(values)[first].tolist())[: lengths[first]].decode()

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.gather(torch.zeros(1))

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Turn what the backends say of a peer that is gone into a `PeerLostError`."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size > 1 and _tells_of_a_peer(error):
                raise PeerLostError(str(error).splitlines()[0]) from error
            raise


def _alone(error: BaseException | None) -> bool:
    """Whether this process ends by a failure of its own, of which the others do not know; those that a user can mend
    are raised by all together, but for a lack of memory."""
    if isinstance(error, MemoryShortageError):
        return True
    known = UserError, InterruptedRunError, PeerLostError, LeaseLostError
    return isinstance(error, Exception) and not isinstance(error, known)


def _tells_of_a_peer(error: RuntimeError) -> bool:
    """gloo has no exception type of its own; its messages begin with the place in its source."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    return "gloo/" in str(error) or "Connection closed by peer" in str(error)


def default_threads(local_processes: int = 1) -> int:
    """CPU threads for each of the processes of this machine, of the cores that this job may use."""
    return max(1, cores() // local_processes)
