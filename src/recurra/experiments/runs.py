"""Train several settings on one text with several seeds, at equal minutes or tokens.

Every run is an ordinary run directory that every command reads. All contenders train with one seed
before the next seed begins, so that a change of the machine's speed affects all of them. All runs
are prepared before the first one trains, so that invalid settings are reported at once. Settings
that depend on the minutes and on the machine's speed are chosen once, for a contender's first seed,
and kept for the others, so that seeds differ in their random numbers only. Finished runs are kept:
the same comparison in the same directory resumes where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recurra.config import RunConfig
from recurra.config.checks import require
from recurra.data.token_file import load_token_file
from recurra.errors import (
    DivergenceError,
    NonFiniteError,
    TrainingInterrupted,
)
from recurra.experiments.folder import ComparisonFolder, slug
from recurra.experiments.results import Comparison, Contender, Result, Row
from recurra.inference.language_model import LanguageModel, Source, as_list
from recurra.io.files import to_json, write_json
from recurra.report.curve import require_matplotlib, write_comparison_svg
from recurra.report.progress import ConsoleProgress, Progress, StepMetrics, format_count
from recurra.runs.compatibility import FREE_SETTINGS
from recurra.runs.directory import RunDirectory
from recurra.runtime.clock import Clock
from recurra.runtime.distributed import started_count
from recurra.training.batch_schedule import tokens_per_step
from recurra.training.run import numbered, prepare_run, resume_run, short_name

COMMON = (
    "epochs", "steps", "minutes", "seed", "device", "threads", "plot", "val_fraction", "min_freq",
    "letters_only", "max_tokens", "encoding", "newlines", "separator",
)  # fmt: skip
"""Settings that all contenders share, or the comparison would not be one: of the budget, and of
what is predicted."""


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
            settings in it continues.
        force: replace an older comparison.
        progress: receives training events.
        options: of `train`, for all contenders.

    Raises:
        ConfigError: a setting is invalid, or is not one that contenders may differ in.
        RunError: the folder holds another comparison.
        TrainingInterrupted: a signal came; the same call with the same directory continues.
    """
    made = []
    for name, settings in _named(contenders):
        own = {**options, **settings}
        made.append(Contender(name, RunConfig.from_options(**own), frozenset(own)))
    shown = progress or ConsoleProgress()
    return run_comparison(as_list(source), made, seeds, num_tokens, out, shown, force=force)


def _named(contenders: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each contender's name and settings, whichever way they were given."""
    is_mapping = isinstance(contenders, Mapping)
    is_sequence = isinstance(contenders, Sequence) and not isinstance(contenders, str)
    require(is_mapping or is_sequence, "contenders are names of cells, or settings by name")
    for name in contenders:
        settings = contenders[name] if is_mapping else {"cell": name}
        require(isinstance(name, str), f"a contender's name is a text, not {name!r}")
        require(isinstance(settings, Mapping), f"the settings of {name!r} are no mapping")
        yield name, settings


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
    """`compare` with explicit arguments."""
    _check(sources, contenders, seeds, num_tokens)
    plots = contenders[0].config.training.plot
    contenders = [_with_budget(contender, num_tokens) for contender in contenders]
    stem = short_name(sources)
    path = Path(out) if out is not None else numbered(Path("runs") / f"{stem}-comparison")
    folder = ComparisonFolder(path)
    description = _describe(sources, contenders, seeds)
    with progress, folder.locked():
        goes_on = folder.holds(description, force=force)
        if goes_on:
            _make_ready(sources, contenders, folder, progress)
        else:
            with folder.prepared(description) as staging:
                _make_ready(sources, contenders, staging, progress)
        progress.message(
            f"{'resuming' if goes_on else 'comparing'} in {path}: {len(contenders) * seeds} runs,"
            f" contenders {len(contenders)}, seeds {seeds}"
        )
        rows = _train(sources, contenders, seeds, folder, progress)
        comparison = Comparison(path, sorted(rows, key=lambda row: row.mean))
        write_json(folder.results, {"runs": comparison.records()})
        if plots:
            write_comparison_svg(comparison.curves(), folder.picture, title=stem)
    return comparison


def _check(
    sources: Sequence[Source], contenders: Sequence[Contender], seeds: Any, num_tokens: Any
) -> None:
    require(len(contenders) >= 1, "there is nothing to compare")
    require(started_count() == 1, "a comparison is made by one process; start it without torchrun")
    require(
        "-" not in map(str, sources),
        "every run of a comparison reads the text, and standard input can be read once: put it"
        " into a file",
    )
    for name, value in (("seeds", seeds), ("num_tokens", num_tokens)):
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        none_will_do = name == "num_tokens" and value is None
        require(
            is_count or none_will_do, f"{name} must be a whole number of at least 1, not {value}"
        )
    last_seed = contenders[0].config.training.seed + seeds - 1
    require(last_seed < 2**63, "the last seed must be at most 2**63 - 1")
    _check_names([contender.name for contender in contenders])
    for contender in contenders:
        training = contender.config.training
        require(
            contender.config.text.val_fraction > 0.0,
            "a comparison needs text to validate on; val_fraction is 0",
        )
        require(
            num_tokens is None or training.minutes is training.steps is training.epochs is None,
            "one budget, please: num_tokens, or minutes, steps or epochs",
        )
        require(
            num_tokens is None or training.bptt != "full",
            "with bptt full an update is a whole epoch; give the budget in epochs or minutes",
        )
        _check_common(contender.config, contenders[0].config)
    if contenders[0].config.training.plot:
        require_matplotlib()


def _check_names(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        for other in names[:index]:
            require(name != other, f"{name!r} is there twice")
            # Some file systems do not tell large letters from small ones.
            is_same = slug(name).casefold() == slug(other).casefold()
            require(not is_same, f"{other!r} and {name!r} would share a folder; rename one")


def _check_common(config: RunConfig, other: RunConfig) -> None:
    for name in COMMON:
        own, common = _setting(config, name), _setting(other, name)
        require(own == common, f"contenders cannot differ in {name} ({common} and {own})")
    # Of bpe it is a way to cut the text; of others, how much of it need not be predicted.
    sizes = {c.text.vocab_size for c in (config, other) if c.text.tokens != "bpe"}
    require(len(sizes) < 2, "contenders cannot differ in vocab_size, unless their tokens are bpe")


def _setting(config: RunConfig, name: str) -> Any:
    return getattr(config.training if hasattr(config.training, name) else config.text, name)


def _with_budget(contender: Contender, num_tokens: int | None) -> Contender:
    """With a budget in tokens as steps, and no picture for each run."""
    config, training = contender.config, dataclasses.replace(contender.config.training, plot=False)
    if num_tokens is not None:
        steps = max(1, round(num_tokens / tokens_per_step(training)))
        training = dataclasses.replace(training, steps=steps)
    own = dataclasses.replace(config, training=training)
    given = contender.given | ({"steps"} if num_tokens is not None else set())
    return Contender(contender.name, own, given)


def _make_ready(
    sources: Sequence[Source],
    contenders: Sequence[Contender],
    folder: ComparisonFolder,
    progress: Progress,
) -> None:
    """Make every contender's first run, up to its first step, unless it is there."""
    for contender in contenders:
        run = folder.run(contender.name, contender.config.training.seed)
        if not run.is_run:
            shown = _Choices(progress, contender.name)
            given = contender.given | {"seed"}
            prepare_run(sources, contender.config, run.path, shown, Clock(), given=given)
        held_out = len(load_token_file(run.path).val)
        require(held_out >= 2, f"{contender.name}: no text was left to validate on")


def _train(
    sources: Sequence[Source],
    contenders: Sequence[Contender],
    seeds: int,
    folder: ComparisonFolder,
    progress: Progress,
) -> list[Row]:
    """Train all runs, interleaved by seed, from their current state."""
    results: dict[str, list[Result]] = {c.name: [] for c in contenders}
    with _saying_how_to_go_on(folder.path):
        for contender, seed in _turns(contenders, seeds):
            result = _run(sources, contender, seed, folder, progress)
            results[contender.name].append(result)
            progress.message(_tell(contender, result))
    return [Row(contender, results[contender.name]) for contender in contenders]


@contextmanager
def _saying_how_to_go_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except TrainingInterrupted as stop:
        how = f"saved in {folder}; the same comparison resumes with --out {folder}"
        raise TrainingInterrupted(stop.signum, how) from None


def _describe(
    sources: Sequence[Source], contenders: Sequence[Contender], seeds: int
) -> dict[str, Any]:
    """What makes a comparison this one, as JSON has it."""
    described = {
        contender.name: {
            name: value
            for section in contender.config.to_dict().values()
            for name, value in section.items()
            if name in contender.given - set(FREE_SETTINGS)
        }
        for contender in contenders
    }
    description = {
        "sources": [str(source) for source in sources],
        "seeds": seeds,
        "contenders": described,
    }
    return dict(json.loads(to_json(description)))


def _settled(contender: Contender, seed: int, folder: ComparisonFolder) -> RunConfig:
    """The settings of its first run, nothing left to choose, for one of its seeds."""
    config = folder.run(contender.name, contender.config.training.seed).read_config()
    free = {name: getattr(contender.config.training, name) for name in FREE_SETTINGS}
    training = dataclasses.replace(config.training, seed=seed, **free)
    return dataclasses.replace(config, training=training)


def _turns(contenders: Sequence[Contender], seeds: int) -> Iterator[tuple[Contender, int]]:
    first = contenders[0].config.training.seed
    for seed in range(first, first + seeds):
        for contender in contenders:
            yield contender, seed


def _run(
    sources: Sequence[Source],
    contender: Contender,
    seed: int,
    folder: ComparisonFolder,
    progress: Progress,
) -> Result:
    run = folder.run(contender.name, seed)
    config = _settled(contender, seed, folder)
    brief = _Brief(progress, f"{contender.name}, seed {seed}")
    try:
        if not run.is_run:
            names = RunConfig.option_names()
            prepare_run(sources, config, run.path, Progress(), Clock(), given=names)
        lm = resume_run(run.path, brief, Clock(), given=config, sources=sources)
    except (DivergenceError, NonFiniteError) as error:
        progress.message(f"{brief.name}: {error}")
        return _result(seed, run, None)
    return _result(seed, run, lm)


def _result(seed: int, run: RunDirectory, lm: LanguageModel | None) -> Result:
    records = run.read_metrics()
    last: dict[str, Any] = records[-1] if records else {"tokens": 0, "seconds": 0.0}
    speeds = [record["tokens_per_second"] for record in records]
    found = None if lm is None else lm.validate()
    figures = {} if found is None else found.to_dict()
    return Result(
        seed=seed,
        folder=run.path,
        parameters=None if lm is None else lm.model.num_parameters,
        nats_per_token=figures.get("nats_per_token"),
        bits_per_char=figures.get("bits_per_char"),
        unknown=None if found is None else found.num_unknown / found.num_tokens,
        tokens=last["tokens"],
        seconds=last["seconds"],
        tokens_per_second=statistics.median(speeds) if speeds else 0.0,
        records=records,
    )


def _tell(contender: Contender, result: Result) -> str:
    if result.nats_per_token is None:
        return f"{contender.name}, seed {result.seed}: failed"
    config = RunDirectory(result.folder).read_config()
    return (
        f"{contender.name}, seed {result.seed}: {result.nats_per_token:.4f} nats per token,"
        f" {config.model.hidden_size} units, learning rate {config.training.lr:g},"
        f" {format_count(result.tokens)} tokens in {result.seconds:.0f} s"
    )


class _Choices(Progress):
    """Passes on what was chosen for a contender."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def plan(self, lines: Sequence[str]) -> None:
        self._progress.message(self._name)
        self._progress.plan([f"  {line}" for line in lines])

    def message(self, text: str) -> None:
        self._progress.message(f"{self._name}: {text}")


class _Brief(Progress):
    """Forwards the messages of one run among many."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self.name = progress, name

    def moment(self, moment: StepMetrics) -> None:
        self._progress.moment(moment)

    def message(self, text: str) -> None:
        self._progress.message(f"{self.name}: {text}")
