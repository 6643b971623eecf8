"""The contents of a checkpoint: everything needed for an exact resume.

    state.safetensors    weights and their averages, the optimiser's, hidden state, random states
    training.json        counters and the best so far; settings, text and vocabulary
    session.json         what differs from run to run: the clock, the machine
    best.safetensors     the weights that model.safetensors held
    *.jsonl              metrics, samples and failures up to here

The first, the second and the best are the same bytes in every run of the same text, settings,
seed, thread count and machine. The tensors are those of `Engine.state_dict`.
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
    """What the files of a checkpoint say, the tensors aside.

    Attributes:
        state: see `train_state.TrainState`.
        identity: see `compatibility.identity`.
        timing: see `train_state.Timing`.
        environment: see `compatibility.environment`.
    """

    state: TrainState
    identity: dict[str, Any]
    timing: Timing
    environment: dict[str, Any]

    def to_files(self) -> dict[str, bytes]:
        """As the two JSON files of a checkpoint."""
        return {
            TRAINING: to_json({"memory": asdict(self.state), "run": self.identity}),
            SESSION: to_json({"timing": asdict(self.timing), "machine": self.environment}),
        }

    @classmethod
    def read(cls, folder: Path) -> CheckpointRecord:
        """Read the two JSON files of a checkpoint.

        Raises:
            RunError: one is missing, or is not what it should be.
        """
        training, session = read_json(folder / TRAINING), read_json(folder / SESSION)
        try:
            state = TrainState.from_dict(training.get("memory"))
            timing = Timing.from_dict(session.get("timing"))
        except ConfigError as error:
            raise RunError(f"{folder} is damaged: {error}") from error
        run, machine = training.get("run"), session.get("machine")
        if not isinstance(run, dict) or not isinstance(machine, dict):
            raise RunError(f"{folder} is damaged: it does not say which run it belongs to")
        return cls(state, run, timing, machine)
