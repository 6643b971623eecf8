"""The processes that train one model together, and their collectives.

Several processes are started by torchrun and joined by torch.distributed: gloo on a CPU, NCCL on
GPUs. The first one alone writes. All that decides how training continues (a loss, a signal, the
time that is left) is agreed on, so that all take the same turn at the same step. Nothing that
passes between them is a pickle. Knows no model and no text.
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
    """This process among those that train together; by default it is alone.

    Attributes:
        rank: 0 for the first.
        count: how many there are.
        device: where this one computes, and where its messages must lie.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """Which of `total` streams are this process's: neighbours, shares equal or one apart."""
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, in float64.

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        self._reduce(total)
        return [float(value) for value in total.tolist()]

    def gather_streams(self, part: Tensor, total: int) -> Tensor:
        """The state of all streams, (L, total, H), from this process's (L, own, H).

        Raises:
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return part
        whole = part.new_zeros(part.shape[0], total, part.shape[2])
        whole[:, self.share(total)] = part
        self._reduce(whole)
        return whole

    def run_on_first(self, work: Callable[[], str]) -> str:
        """Let the first process do something, and tell all what came of it.

        Raises:
            Exception: in the first process, what `work` raised.
            PeerError: in the others, when it raised.
            LostProcessError: another process is gone.
        """
        if self.count == 1:
            return work()
        if not self.is_first:
            return self._hear()
        try:
            result = work()
        except BaseException:
            self._tell(None)
            raise
        self._tell(result)
        return result

    def sum_in_place(self, tensor: Tensor) -> None:
        """Sum a tensor over the processes, in place.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.count > 1:
            self._reduce(tensor)

    def _tell(self, text: str | None) -> None:
        data = b"" if text is None else b"\x01" + text.encode("utf-8", "surrogateescape")
        message = torch.tensor(list(data), dtype=torch.uint8, device=self.device)
        self._broadcast(torch.tensor([len(data)], device=self.device))
        self._broadcast(message)

    def _hear(self) -> str:
        size = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._broadcast(size)
        message = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        self._broadcast(message)
        data = bytes(message.tolist())
        if not data:
            raise PeerError("the first process failed; its message says why")
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
    """Turn what torch.distributed raises when a process is gone into a LostProcessError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RecurraError) or not _is_about_peers(error):
            raise
        raise LostProcessError("another process of this training is gone") from error


def _is_about_peers(error: RuntimeError) -> bool:
    # The errors of gloo have no specific type; each names its source file.
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def started_count() -> int:
    """How many processes torchrun started; 1 without it."""
    return _environment_number("WORLD_SIZE", 1)


def started_rank() -> int:
    """The rank that torchrun gave this process; 0 without it."""
    return _environment_number("RANK", 0)


def local_rank() -> int:
    """The rank among the processes of this machine, which chooses its GPU; 0 without torchrun."""
    return _environment_number("LOCAL_RANK", 0)


def is_restart() -> bool:
    """Whether torchrun started this process again after another had died."""
    return _environment_number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def job_name() -> str:
    """What tells this job of torchrun's from others: its name, its agent's process and port."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return " ".join([str(os.getppid()), *(os.environ.get(name, "") for name in names)])


def may_be_restarted() -> bool:
    """Whether torchrun would start this process again."""
    return _environment_number("TORCHELASTIC_MAX_RESTARTS", 0) > 0


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that torchrun started, or be alone without it.

    Raises:
        ConfigError: torchrun's environment is incomplete, or this torch cannot join processes.
        LostProcessError: the others did not come.
    """
    if started_count() == 1:
        yield Processes(device=device)
        return
    if not distributed.is_available():
        raise ConfigError("this build of torch cannot train in several processes")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with peer_errors_translated():
        try:
            _join("nccl" if device.type == "cuda" else "gloo")
        except ValueError as error:
            raise ConfigError(f"cannot join the processes of torchrun: {error}") from error
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        # What still holds the group (torch's engine, in cycles of references) must go before it.
        gc.collect()
        distributed.destroy_process_group()


def _join(engine: str) -> None:
    # Not to be had in every build of torch.
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://"))
    # torchrun keeps the store when it starts the processes again, and the dead ones' addresses are
    # still in it.
    start = _environment_number("TORCHELASTIC_RESTART_COUNT", 0)
    fresh = PrefixStore(f"start-{start}", store)
    distributed.init_process_group(engine, store=fresh, rank=rank, world_size=count)


def _environment_number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise ConfigError(f"the environment's {name} is {text!r}, not a whole number") from error
