"""The contents of a checkpoint: everything needed for an exact resume.

    state.safetensors    weights, averaged weights, optimizer state, hidden state, random states
    training.json        `TrainState` and the identity of the run: settings, text, vocabulary
    session.json         values that differ between runs: times and the environment
    best.safetensors     a copy of model.safetensors
    *.jsonl              metrics, samples and failures up to this step

state.safetensors, training.json and best.safetensors are bit-identical in every run of the same
text, settings, seed and thread count on the same machine. The tensors in state.safetensors are
those of `Engine.state_dict`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recurra.errors import ConfigError, RunError
from recurra.io.files import read_json, to_json
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
    """

    state: TrainState
    identity: dict[str, Any]
    timing: Timing
    environment: dict[str, Any]

    def to_files(self) -> dict[str, bytes]:
        """Return the contents of the two JSON files by name."""
        return {
            TRAINING: to_json({"memory": asdict(self.state), "run": self.identity}),
            SESSION: to_json({"timing": asdict(self.timing), "machine": self.environment}),
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
        except ConfigError as error:
            raise RunError(f"{directory} is damaged: {error}") from error
        run, machine = training.get("run"), session.get("machine")
        if not isinstance(run, dict) or not isinstance(machine, dict):
            raise RunError(f"{directory} is damaged: field 'run' or 'machine' is missing")
        return cls(state, run, timing, machine)
