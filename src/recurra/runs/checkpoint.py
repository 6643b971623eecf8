"""The contents of a checkpoint: everything needed for an exact resume.

    state.safetensors    weights, averaged weights, optimizer state, hidden state, random states
    training.json        `TrainState` and the identity of the run: settings, text, vocabulary
    session.json         values that differ between runs: times, the environment, and the lengths of
                         the files of metrics, samples and failures
    best.safetensors     a copy of model.safetensors
    *.jsonl              only in checkpoints of 0.1: copies of metrics, samples and failures

state.safetensors, training.json and best.safetensors are bit-identical in every run of the same
text, settings, seed and thread count on the same machine. The tensors in state.safetensors are
those of `Engine.state_dict`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recurra.errors import ConfigError, RunError
from recurra.io.json_files import read_json, to_json
from recurra.runs.history import HistoryMark
from recurra.runs.train_state import Timing, TrainState

STATE, TRAINING, SESSION, BEST = (
    "state.safetensors",
    "training.json",
    "session.json",
    "best.safetensors",
)


@dataclass
class CheckpointRecord:
    """The contents of the JSON files of a checkpoint.

    Attributes:
        state: the state of the training loop.
        identity: the result of `compatibility.identity`.
        timing: the times of the run.
        environment: the result of `compatibility.environment`.
        histories: the lengths of the histories by file name; None in checkpoints of 0.1, which
            contain copies of them.
    """

    state: TrainState
    identity: dict[str, Any]
    timing: Timing
    environment: dict[str, Any]
    histories: dict[str, HistoryMark] | None = None

    def to_files(self) -> dict[str, bytes]:
        """Return the contents of the two JSON files by name."""
        session = {"timing": asdict(self.timing), "machine": self.environment}
        if self.histories is not None:
            session["histories"] = {name: m.to_dict() for name, m in self.histories.items()}
        return {
            TRAINING: to_json({"memory": asdict(self.state), "run": self.identity}),
            SESSION: to_json(session),
        }

    @classmethod
    def read(cls, directory: Path) -> CheckpointRecord:
        """Read the two JSON files of a checkpoint.

        Raises:
            RunError: if a file is missing or damaged.
        """
        training, session = read_json(directory / TRAINING), read_json(directory / SESSION)
        try:
            state = TrainState.from_dict(training.get("memory"))
            timing = Timing.from_dict(session.get("timing"))
            histories = _marks(session.get("histories"))
        except ConfigError as error:
            raise RunError(f"{directory} is damaged: {error}") from error
        run, machine = training.get("run"), session.get("machine")
        if not isinstance(run, dict) or not isinstance(machine, dict):
            raise RunError(f"{directory} is damaged: field 'run' or 'machine' is missing")
        return cls(state, run, timing, machine, histories)


def _marks(values: Any) -> dict[str, HistoryMark] | None:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ConfigError("field 'histories' is not an object")
    return {name: HistoryMark.from_dict(mark) for name, mark in values.items()}
