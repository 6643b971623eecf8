"""The processes that train one model together, and their collectives.

torchrun starts the processes, and torch.distributed connects them. Tensors on the CPU are exchanged
by gloo and tensors on a GPU by NCCL. Values that the host reads are in tensors on the CPU, so that
no collective makes the host wait for the GPU. Only the first process writes files. Everything that
affects control flow (losses, signals, the remaining time) is shared, so that all processes take the
same branch at the same step. Collectives exchange tensors only, never pickled objects.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from recurra.errors import ConfigError, LostProcessError, PeerError, RecurraError
from recurra.runtime import network
from recurra.runtime.joining import agree_on_start

CPU = torch.device("cpu")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Maximum time that a process waits for the others in one collective. It is long because the first
process may prepare a large text while the others wait. A machine that cannot be reached is noticed
earlier, see `network`."""
_some_restarted: ContextVar[bool | None] = ContextVar("some_restarted", default=None)


@dataclass(frozen=True)
class Processes:
    """The group of processes that train together, as seen from this one; a single one by default.

    Attributes:
        rank: rank of this process; 0 for the first.
        count: number of processes.
        device: device on which this process trains.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this is the first process, which writes all files."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """Return the rows of this process among `total` rows.

        Every process has a contiguous range, and the sizes of two ranges differ by at most 1.
        """
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over the processes, in float64.

        The values are exchanged by gloo, whatever the device of the training.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.count == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64)
        self._reduce(total)
        return [float(value) for value in total.tolist()]

    def gather_streams(self, part: Tensor, total: int) -> Tensor:
        """Return the hidden state of all rows.

        Args:
            part: the state of this process's rows, (L, own rows, H).
            total: number of rows of all processes.

        Returns:
            (L, total, H), on the CPU if there are several processes.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.count == 1:
            return part
        gathered = torch.zeros(part.shape[0], total, part.shape[2], dtype=part.dtype)
        gathered[:, self.share(total)] = part
        self._reduce(gathered)
        return gathered

    def run_on_first(self, work: Callable[[], str]) -> str:
        """Call `work` in the first process, and return its result in all processes.

        Raises:
            Exception: in the first process, any exception that `work` raises.
            PeerError: in the other processes, if `work` raised an exception.
            LostProcessError: another process has ended.
        """
        if self.count == 1:
            return work()
        if not self.is_first:
            return self._receive()
        try:
            result = work()
        except BaseException:
            self._send(None)
            raise
        self._send(result)
        return result

    def sum_in_place(self, tensor: Tensor) -> None:
        """Sum a tensor over the processes in place, by an all-reduce.

        On a GPU, the all-reduce runs after the operations that were launched before on the current
        stream, and the host does not wait for it.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.count > 1:
            self._reduce(tensor)

    def _send(self, text: str | None) -> None:
        """Broadcast a text, or None after an error, from the first process."""
        data = b"" if text is None else b"\x01" + text.encode("utf-8", "surrogateescape")
        message = torch.tensor(list(data), dtype=torch.uint8)
        self._broadcast(torch.tensor([len(data)]))
        self._broadcast(message)

    def _receive(self) -> str:
        """Return the text that the first process broadcasts."""
        size = torch.zeros(1, dtype=torch.int64)
        self._broadcast(size)
        message = torch.zeros(int(size), dtype=torch.uint8)
        self._broadcast(message)
        data = bytes(message.tolist())
        if not data:
            raise PeerError("the first process failed; see its error message")
        return data[1:].decode("utf-8", "surrogateescape")

    def _broadcast(self, tensor: Tensor) -> None:
        if tensor.numel():
            with peer_errors_translated():
                distributed.broadcast(tensor, src=0)

    def _reduce(self, tensor: Tensor) -> None:
        with peer_errors_translated():
            distributed.all_reduce(tensor)


SINGLE_PROCESS = Processes()


@contextmanager
def peer_errors_translated() -> Iterator[None]:
    """Raise LostProcessError instead of errors that torch.distributed raises for lost processes."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RecurraError) or not _is_about_peers(error):
            raise
        raise LostProcessError(
            "another process of this training has ended or cannot be reached"
        ) from error


def _is_about_peers(error: RuntimeError) -> bool:
    # The errors of gloo have no specific type; each names its source file.
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def started_count() -> int:
    """Return the number of processes that torchrun started; 1 without torchrun."""
    return _environment_number("WORLD_SIZE", 1)


def started_rank() -> int:
    """Return the rank of this process; 0 without torchrun."""
    return _environment_number("RANK", 0)


def local_rank() -> int:
    """Return the rank of this process on this machine; 0 without torchrun."""
    return _environment_number("LOCAL_RANK", 0)


def local_count() -> int:
    """Return the number of processes that torchrun started on this machine; 1 without torchrun."""
    return max(_environment_number("LOCAL_WORLD_SIZE", 1), 1)


def is_restart() -> bool:
    """Return whether torchrun has restarted a process of this training after a failure.

    torchrun counts on each machine separately, and only failures there. After `joined_processes`,
    the processes of all machines return the same.
    """
    some_restarted = _some_restarted.get()
    return _has_been_restarted() if some_restarted is None else some_restarted


def job_name() -> str:
    """Return an identifier of this torchrun job, which is the same after a restart.

    It is the `--rdzv-id` of a job on several machines. Otherwise it also contains the process and
    the address of torchrun.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run_id not in ("", "none") and _has_several_machines():
        return run_id
    names = ("MASTER_ADDR", "MASTER_PORT")
    return " ".join([str(os.getppid()), run_id, *(os.environ.get(name, "") for name in names)])


def may_be_restarted() -> bool:
    """Return whether torchrun restarts this process after a failure."""
    return _environment_number("TORCHELASTIC_MAX_RESTARTS", 0) > 0


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started; a single process without torchrun.

    Args:
        device: the device of this process.

    Raises:
        ConfigError: torchrun's environment variables are incomplete, this build of torch lacks
            torch.distributed, or the device is MPS, for which torch has no collectives.
        LostProcessError: the other processes cannot be reached.
    """
    if started_count() == 1:
        yield Processes(device=device)
        return
    if not distributed.is_available():
        raise ConfigError(
            "this build of torch does not support several processes; start one process"
        )
    if device.type == "mps":
        raise ConfigError("several processes cannot train on mps; use --device cpu")
    if device.type == "cuda":
        # torch does not accept `cuda` without a number here.
        torch.cuda.set_device(local_rank() if device.index is None else device.index)
    with peer_errors_translated():
        try:
            _join(device)
        except ValueError as error:
            raise ConfigError(f"cannot join the processes of torchrun: {error}") from error
    processes = Processes(distributed.get_rank(), distributed.get_world_size(), device)
    before = _some_restarted.set(None)
    try:
        _some_restarted.set(processes.sum([float(_has_been_restarted())])[0] > 0.0)
        yield processes
    except LostProcessError:
        _abort(device)
        raise
    finally:
        _some_restarted.reset(before)
        if distributed.is_initialized():
            # Objects that still reference the process group must be freed before it is destroyed.
            gc.collect()
            distributed.destroy_process_group()


def _join(device: torch.device) -> None:
    # Imported here because some builds of torch lack these names.
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    if _has_several_machines():
        network.choose_interface(os.environ.get("MASTER_ADDR", ""))
    with network.keep_alive_enabled():
        store, rank, count = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
        # torchrun keeps the store when it restarts the processes. Without a prefix for each start,
        # they would read the addresses of processes that have ended.
        start = PrefixStore(agree_on_start(store, rank, count), store)
        backend = _backend(device)
        distributed.init_process_group(
            backend, store=start, rank=rank, world_size=count, timeout=COLLECTIVE_TIMEOUT
        )


def _backend(device: torch.device) -> str:
    """Return torch.distributed's backend for each type of device; Windows has no NCCL."""
    has_nccl = device.type == "cuda" and distributed.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if has_nccl else "gloo"


def _abort(device: torch.device) -> None:
    """Leave the process group without the others, for which an all-reduce on a GPU may wait."""
    if device.type == "cuda":
        from torch.distributed.distributed_c10d import _abort_process_group

        _abort_process_group()


def _has_been_restarted() -> bool:
    return _environment_number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def _has_several_machines() -> bool:
    return local_count() < started_count()


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise ConfigError(
            f"environment variable {name} is {text!r}; it must be an integer"
        ) from error
