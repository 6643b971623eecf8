"""The storage of a run in memory, for tests of the training loop that need no files."""

import hashlib
import json
from pathlib import Path

from safetensors.torch import load

from recurra.errors import RunError
from recurra.io.json_files import to_json
from recurra.runs.checkpoint import SESSION, STATE, TRAINING, CheckpointRecord
from recurra.runs.checkpoint_store import Cost, step_of
from recurra.runs.directory import FAILURES_FILE, HISTORIES, METRICS_FILE, SAMPLES_FILE
from recurra.runs.history import HistoryMark
from recurra.runs.train_state import Timing, TrainState


class MemoryCheckpoints:
    """Checkpoints as dictionaries of bytes."""

    def __init__(self):
        self.files = {}
        self._digests = {}

    def path_of(self, name):
        return Path("memory", name)

    def names(self):
        return sorted(self.files, key=lambda name: (step_of(name), name))

    def write(self, name, files):
        self.files[name] = dict(files)
        self._digests[name] = {file: _digest(data) for file, data in files.items()}
        return Cost(sum(map(len, files.values())), 0.0)

    def verify(self, name):
        for file, digest in self._digests[name].items():
            if _digest(self.files[name][file]) != digest:
                raise RunError(f"{self.path_of(name) / file} is damaged")

    def read_record(self, name):
        training, session = (json.loads(self.files[name][file]) for file in (TRAINING, SESSION))
        return CheckpointRecord(
            TrainState.from_dict(training["memory"]),
            training["run"],
            Timing.from_dict(session["timing"]),
            session["machine"],
            {name: HistoryMark(**mark) for name, mark in session["histories"].items()},
        )

    def read_state(self, name, specs, optional):
        tensors = load(self.files[name][STATE])
        assert specs.keys() - set(optional) <= tensors.keys() <= specs.keys()
        return tensors

    def read_file(self, name, file):
        return self.files[name].get(file)

    def keep_only(self, names):
        for name in self.files.keys() - set(names):
            del self.files[name]


class MemoryStore:
    """A `RunStore` without files."""

    path = Path("memory")
    failures = path / FAILURES_FILE

    def __init__(self):
        self.checkpoints = MemoryCheckpoints()
        self.histories = {}
        self.losses = b"[]"
        self.weights = None

    def append_metrics(self, record):
        self._append(METRICS_FILE, record)

    def append_sample(self, record):
        self._append(SAMPLES_FILE, record)

    def append_failure(self, record):
        self._append(FAILURES_FILE, record)

    def _append(self, name, record):
        # A record goes through JSON, as on disk.
        line = json.dumps(json.loads(to_json(record))).encode() + b"\n"
        self.histories[name] = self.histories.get(name, b"") + line

    def read_metrics(self):
        return [json.loads(line) for line in self.histories.get(METRICS_FILE, b"").splitlines()]

    def mark_histories(self):
        return {name: HistoryMark.of(data) for name, data in self.histories.items()}

    def cut_histories(self, marks):
        assert marks.keys() <= set(HISTORIES)
        for name, mark in marks.items():
            data = self.histories.pop(name, b"")
            if mark is not None:
                assert mark.fits(data)
                self.histories[name] = data[: mark.num_bytes]
        return []

    def replace_histories(self, files):
        raise AssertionError("only checkpoints of 0.1 contain histories")

    def remove_histories(self):
        self.histories.clear()
        self.losses = b"[]"

    def write_losses(self, points):
        self.losses = to_json(points)

    def read_losses(self):
        return json.loads(self.losses)

    def write_weights(self, data):
        self.weights = data

    def load_best_weights(self, model):
        if self.weights is not None:
            model.load_state_dict(load(self.weights))


def _digest(data):
    return hashlib.sha256(data).hexdigest()
