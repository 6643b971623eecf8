"""The processes that train one model together, and their collectives.

torchrun starts the processes, and torch.distributed connects them: gloo on CPUs, NCCL on GPUs. Only
the first process writes files. Everything that affects control flow (losses, signals, the remaining
time) is shared, so that all processes take the same branch at the same step. Messages contain
tensors only, never pickled objects.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from recurra.errors import ConfigError, LostProcessError, PeerError, RecurraError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """The group of processes that train together, as seen from this one; a single one by default.

    Attributes:
        rank: rank of this process; 0 for the first.
        count: number of processes.
        device: device of this process, on which the tensors of its messages must be.
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

        Raises:
            LostProcessError: another process has ended.
        """
        if self.count == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        self._reduce(total)
        return [float(value) for value in total.tolist()]

    def gather_streams(self, part: Tensor, total: int) -> Tensor:
        """Return the hidden state of all rows.

        Args:
            part: the state of this process's rows, (L, own rows, H).
            total: number of rows of all processes.

        Returns:
            (L, total, H).

        Raises:
            LostProcessError: another process has ended.
        """
        if self.count == 1:
            return part
        gathered = part.new_zeros(part.shape[0], total, part.shape[2])
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
        """Sum a tensor over the processes, in place.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.count > 1:
            self._reduce(tensor)

    def _send(self, text: str | None) -> None:
        """Broadcast a text, or None after an error, from the first process."""
        data = b"" if text is None else b"\x01" + text.encode("utf-8", "surrogateescape")
        message = torch.tensor(list(data), dtype=torch.uint8, device=self.device)
        self._broadcast(torch.tensor([len(data)], device=self.device))
        self._broadcast(message)

    def _receive(self) -> str:
        """Return the text that the first process broadcasts."""
        size = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._broadcast(size)
        message = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
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
    """Raise LostProcessError for errors of torch.distributed that the loss of a process causes."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RecurraError) or not _is_about_peers(error):
            raise
        raise LostProcessError("another process of this training has ended") from error


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
    """Return whether torchrun has restarted this process after a failure."""
    return _environment_number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def job_name() -> str:
    """Return an identifier of this torchrun job, from its name, agent process and address."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return " ".join([str(os.getppid()), *(os.environ.get(name, "") for name in names)])


def may_be_restarted() -> bool:
    """Return whether torchrun restarts this process after a failure."""
    return _environment_number("TORCHELASTIC_MAX_RESTARTS", 0) > 0


@contextmanager
def joined_processes(device: torch.device, *, may_move: bool = False) -> Iterator[Processes]:
    """Join the processes that torchrun started; a single process without torchrun.

    Args:
        device: the device of this process.
        may_move: whether the processes may train on the CPU instead of a GPU after all.

    Raises:
        ConfigError: torchrun's environment variables are incomplete, this build of torch lacks
            torch.distributed, or the device is MPS, which has no messages.
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
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        if may_move:
            backend = "cpu:gloo,cuda:nccl"
    with peer_errors_translated():
        try:
            _join(backend)
        except ValueError as error:
            raise ConfigError(f"cannot join the processes of torchrun: {error}") from error
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        # Objects that still reference the process group must be freed before it is destroyed.
        gc.collect()
        distributed.destroy_process_group()


def _join(backend: str) -> None:
    # Imported here because some builds of torch lack these names.
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://"))
    # torchrun keeps the store when it restarts the processes. Without a prefix for each start, they
    # would read the addresses of processes that have ended.
    start = _environment_number("TORCHELASTIC_RESTART_COUNT", 0)
    prefixed = PrefixStore(f"start-{start}", store)
    distributed.init_process_group(backend, store=prefixed, rank=rank, world_size=count)


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise ConfigError(
            f"environment variable {name} is {text!r}; it must be an integer"
        ) from error
