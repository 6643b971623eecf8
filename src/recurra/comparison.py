"""Several settings on one text, at equal minutes or equal tokens, with several seeds.

Every run is an ordinary one, in a folder of its own that every verb reads. All contenders have
their turn with one seed before the next seed begins, so that a machine that slows down slows all
of them. What was done stays: the same comparison in the same folder goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recurra.checks import require
from recurra.config import RunConfig
from recurra.errors import (
    DivergenceError,
    NonFiniteError,
    RecurraError,
    RunError,
    TrainingInterrupted,
)
from recurra.files import read_json, to_json, write_json
from recurra.language_model import LanguageModel, Source, as_list
from recurra.launch import numbered, resume_run, start_run
from recurra.text.catalogue import DEFAULT_CORPUS
from recurra.training.budget import Clock
from recurra.training.curve import require_matplotlib, write_comparison_svg
from recurra.training.growth import tokens_per_step
from recurra.training.identity import FREE_SETTINGS
from recurra.training.progress import ConsoleProgress, Moment, Progress, format_count
from recurra.training.run_folder import RunFolder

DESCRIPTION, PICTURE = "comparison.json", "comparison.svg"
COMMON = ("epochs", "steps", "minutes", "seed", "device", "threads", "plot", "val_fraction")
"""Settings that all contenders share, or the comparison would not be one."""


@dataclass(frozen=True)
class Contender:
    """One of those that are compared.

    Attributes:
        name: as it stands in the table.
        config: its settings, the common ones included.
        given: names of those that somebody chose; with a budget in minutes the others follow from
            text and machine (`training/recipe.py`).
    """

    name: str
    config: RunConfig
    given: frozenset[str]


@dataclass(frozen=True)
class Result:
    """What one run showed.

    Attributes:
        nats_per_token, bits_per_char: of the best weights on the whole validation part, with the
            state carried; None where the training failed.
        tokens, seconds: that it took, by its last report.
        tokens_per_second: of its updates, the median over the reports.
        records: the lines of metrics.jsonl.
    """

    seed: int
    folder: Path
    parameters: int
    nats_per_token: float | None
    bits_per_char: float | None
    tokens: int
    seconds: float
    tokens_per_second: float
    records: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """All but the records, ready for JSON."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["records"]
        return values | {"folder": str(self.folder)}


@dataclass(frozen=True)
class Row:
    """One contender's runs."""

    contender: Contender
    results: Sequence[Result]

    @property
    def scores(self) -> list[float]:
        """Bits per character (or nats per token, where those are not known), of runs that did not
        fail."""
        found = [
            r.nats_per_token if r.bits_per_char is None else r.bits_per_char for r in self.results
        ]
        return [score for score in found if score is not None]

    @property
    def mean(self) -> float:
        """Of the scores; infinite where every run failed."""
        return statistics.fmean(self.scores) if self.scores else math.inf

    @property
    def spread(self) -> float | None:
        """The scores' sample standard deviation; None with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def mean_of(self, name: str) -> float | None:
        """Mean of one of the results' figures over the runs that have it."""
        values = [value for r in self.results if (value := getattr(r, name)) is not None]
        return statistics.fmean(values) if values else None


@dataclass(frozen=True)
class Comparison:
    """All of it.

    Attributes:
        folder: of the runs.
        rows: the best first.
    """

    folder: Path
    rows: Sequence[Row]

    def as_good_as_the_best(self) -> list[Row]:
        """Rows after the first whose distance to it is below twice its standard error: with these
        seeds nobody can tell which of them is ahead."""
        best, *others = self.rows
        return [row for row in others if _is_within_noise(best, row)]

    def curves(self) -> dict[str, list[list[dict[str, Any]]]]:
        """The records of each contender's runs, by its name."""
        return {row.contender.name: [r.records for r in row.results] for row in self.rows}


def compare(
    source: Source | Sequence[Source] = (),
    contenders: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("rnn", "gru", "lstm"),
    *,
    seeds: int = 3,
    num_tokens: int | None = None,
    out: Source | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Train several settings on one text with several seeds, and say which is ahead.

    Args:
        source: as in `train`.
        contenders: names of cells, or options of `train` by the name to show.
        seeds: runs of each; the first has the option `seed`, the next that plus one.
        num_tokens: budget of every run, instead of minutes, steps or epochs.
        out: folder of the runs; by default a new one under `runs/`. A comparison of the same
            settings that lies there goes on.
        force: replace what lies there.
        progress: who is told.
        options: of `train`, for all contenders.

    Raises:
        ConfigError: a setting will not do, or is not one that contenders may differ in.
        RunError: the folder holds another comparison.
        TrainingInterrupted: a signal came; the same call with the same folder goes on.
    """
    if not isinstance(contenders, Mapping):
        contenders = {name: {"cell": name} for name in contenders}
    made = []
    for name, settings in contenders.items():
        own = {**options, **settings}
        made.append(Contender(name, RunConfig.from_options(**own), frozenset(own)))
    shown = progress or ConsoleProgress()
    return run_comparison(as_list(source), made, seeds, num_tokens, out, shown, force=force)


def run_comparison(
    sources: Sequence[Source],
    contenders: Sequence[Contender],
    seeds: int,
    num_tokens: int | None,
    out: Source | None,
    progress: Progress,
    *,
    force: bool = False,
) -> Comparison:
    """`compare` with everything spelled out."""
    _check(contenders, seeds, num_tokens)
    plots = contenders[0].config.training.plot
    contenders = [_with_budget(contender, num_tokens) for contender in contenders]
    first = str(sources[0]) if sources else DEFAULT_CORPUS
    stem = "text" if first == "-" else Path(first).stem or "text"
    folder = Path(out) if out is not None else numbered(Path("runs") / f"{stem}-comparison")
    begun = _begin(folder, _describe(sources, contenders, seeds), force=force)
    progress.message(
        f"{'going on' if begun else 'comparing'} in {folder}: {len(contenders) * seeds} runs,"
        f" contenders {len(contenders)}, seeds {seeds}"
    )
    results: dict[str, list[Result]] = {c.name: [] for c in contenders}
    with progress, _undone_if_nothing_came_of_it(folder), _saying_how_to_go_on(folder):
        for contender, seed in _turns(contenders, seeds):
            place = folder / f"{_slug(contender.name)}-{seed}"
            result = _run(sources, contender, seed, place, progress, force=force)
            results[contender.name].append(result)
            progress.message(_tell(contender, result))
    rows = [Row(contender, results[contender.name]) for contender in contenders]
    comparison = Comparison(folder, sorted(rows, key=lambda row: row.mean))
    if plots:
        write_comparison_svg(comparison.curves(), folder / PICTURE, title=stem)
    return comparison


def _check(contenders: Sequence[Contender], seeds: int, num_tokens: int | None) -> None:
    require(len(contenders) >= 1, "there is nothing to compare")
    require(seeds >= 1, f"seeds must be at least 1, not {seeds}")
    slugs = [_slug(contender.name) for contender in contenders]
    for contender, slug in zip(contenders, slugs, strict=True):
        require(slugs.count(slug) == 1, f"{contender.name!r} is there twice")
        training = contender.config.training
        require(
            contender.config.text.val_fraction > 0.0,
            "a comparison needs text to validate on; val_fraction is 0",
        )
        require(
            num_tokens is None or training.minutes is training.steps is training.epochs is None,
            "one budget, please: num_tokens, or minutes, steps or epochs",
        )
        for name in COMMON:
            own, common = (_setting(c.config, name) for c in (contender, contenders[0]))
            require(own == common, f"contenders cannot differ in {name} ({common} and {own})")
    require(num_tokens is None or num_tokens >= 1, "num_tokens must be at least 1")
    if contenders[0].config.training.plot:
        require_matplotlib()


def _setting(config: RunConfig, name: str) -> Any:
    return getattr(config.training if hasattr(config.training, name) else config.text, name)


def _with_budget(contender: Contender, num_tokens: int | None) -> Contender:
    """With a budget in tokens as steps, and no picture for each run."""
    config, training = contender.config, dataclasses.replace(contender.config.training, plot=False)
    if num_tokens is not None:
        steps = max(1, round(num_tokens / tokens_per_step(training)))
        training = dataclasses.replace(training, steps=steps)
    own = dataclasses.replace(config, training=training)
    return dataclasses.replace(contender, config=own)


def _begin(folder: Path, description: dict[str, Any], *, force: bool) -> bool:
    """Make the folder; True when this very comparison lies there already.

    Raises:
        RunError: something else does.
    """
    file = folder / DESCRIPTION
    if not force and folder.exists() and any(folder.iterdir()):
        if not file.is_file():
            raise RunError(f"{folder} is not empty, and holds no comparison; name another --out")
        if read_json(file) != description:
            raise RunError(
                f"{folder} holds a comparison of other settings; name another --out, or replace"
                " it with --force"
            )
        return True
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, description)
    return False


@contextmanager
def _undone_if_nothing_came_of_it(folder: Path) -> Iterator[None]:
    """A text or a setting that will not do leaves no folder that a better command would find."""
    try:
        yield
    except RecurraError:
        if [file.name for file in folder.iterdir()] == [DESCRIPTION]:
            (folder / DESCRIPTION).unlink()
            folder.rmdir()
        raise


@contextmanager
def _saying_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except TrainingInterrupted as stop:
        how = f"saved in {folder}; the same comparison goes on with --out {folder}"
        raise TrainingInterrupted(stop.signum, how) from None


def _describe(
    sources: Sequence[Source], contenders: Sequence[Contender], seeds: int
) -> dict[str, Any]:
    """What makes a comparison this one, as JSON has it."""
    described = {}
    for contender in contenders:
        config = contender.config.to_dict()
        for name in FREE_SETTINGS:
            del config["training"][name]
        given = sorted(
            name for section in config.values() for name in section.keys() & contender.given
        )
        described[contender.name] = {"config": config, "given": given}
    description = {
        "sources": [str(source) for source in sources],
        "seeds": seeds,
        "contenders": described,
    }
    return dict(json.loads(to_json(description)))


def _turns(contenders: Sequence[Contender], seeds: int) -> Iterator[tuple[Contender, int]]:
    first = contenders[0].config.training.seed
    for seed in range(first, first + seeds):
        for contender in contenders:
            yield contender, seed


def _run(
    sources: Sequence[Source],
    contender: Contender,
    seed: int,
    place: Path,
    progress: Progress,
    *,
    force: bool,
) -> Result:
    training = dataclasses.replace(contender.config.training, seed=seed)
    config = dataclasses.replace(contender.config, training=training)
    brief = _Brief(progress)
    try:
        if RunFolder(place).is_run and not force:
            lm = resume_run(place, brief, Clock())
        else:
            given = contender.given | {"seed"}
            lm = start_run(sources, config, place, brief, Clock(), given=given, force=force)
    except (DivergenceError, NonFiniteError) as error:
        progress.message(f"{contender.name}, seed {seed}: {error}")
        return _result(seed, place, None)
    return _result(seed, place, lm)


def _result(seed: int, place: Path, lm: LanguageModel | None) -> Result:
    records = RunFolder(place).read_metrics()
    last: dict[str, Any] = records[-1] if records else {"tokens": 0, "seconds": 0.0}
    speeds = [record["tokens_per_second"] for record in records]
    figures = {} if lm is None else lm.validate().to_dict()
    nats, bits = (figures.get(name) for name in ("nats_per_token", "bits_per_char"))
    return Result(
        seed=seed,
        folder=place,
        parameters=0 if lm is None else lm.model.num_parameters,
        nats_per_token=nats,
        bits_per_char=bits,
        tokens=last["tokens"],
        seconds=last["seconds"],
        tokens_per_second=statistics.median(speeds) if speeds else 0.0,
        records=records,
    )


def _tell(contender: Contender, result: Result) -> str:
    if result.nats_per_token is None:
        return f"{contender.name}, seed {result.seed}: failed"
    return (
        f"{contender.name}, seed {result.seed}: {result.nats_per_token:.4f} nats per token,"
        f" {format_count(result.tokens)} tokens in {result.seconds:.0f} s"
    )


def _slug(name: str) -> str:
    """A folder's name: letters and digits of the contender's."""
    return re.sub(r"\W+", "-", name).strip("-") or "contender"


def _is_within_noise(best: Row, other: Row) -> bool:
    if best.spread is None or other.spread is None:
        return False
    variances = (row.spread**2 / len(row.scores) for row in (best, other) if row.spread is not None)
    return other.mean - best.mean < 2.0 * math.sqrt(sum(variances))


class _Brief(Progress):
    """Passes on what a person wants to know of one run among many."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def moment(self, moment: Moment) -> None:
        self._progress.moment(moment)
