"""Several settings on one text, at equal minutes or equal tokens, with several seeds.

Every run is an ordinary one, in a folder of its own that every verb reads. All contenders have
their turn with one seed before the next seed begins, so that a machine that slows down slows all
of them. Where settings follow from the minutes and the machine's speed they are chosen once, for a
contender's first seed, and hold for the others: seeds differ in chance alone. What was done stays:
the same comparison in the same folder goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recurra.checks import require
from recurra.comparison.results import Comparison, Contender, Result, Row
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

DESCRIPTION, RESULTS, PICTURE = "comparison.json", "results.json", "comparison.svg"
COMMON = ("epochs", "steps", "minutes", "seed", "device", "threads", "plot", "val_fraction")
"""Settings that all contenders share, or the comparison would not be one."""


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
            done = results[contender.name]
            settled = _with_settings_of(done[0].folder, contender) if done else contender
            place = folder / f"{_slug(contender.name)}-{seed}"
            done.append(_run(sources, settled, seed, place, progress, force=force))
            progress.message(_tell(contender, done[-1]))
    rows = [Row(contender, results[contender.name]) for contender in contenders]
    comparison = Comparison(folder, sorted(rows, key=lambda row: row.mean))
    write_json(folder / RESULTS, {"runs": comparison.records()})
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
    given = contender.given | ({"steps"} if num_tokens is not None else set())
    return Contender(contender.name, own, given)


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


def _with_settings_of(run: Path, contender: Contender) -> Contender:
    """As the contender's first run had them, nothing left to choose."""
    config = RunFolder(run).read_config()
    free = {name: getattr(contender.config.training, name) for name in FREE_SETTINGS}
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **free))
    return Contender(contender.name, config, RunConfig.option_names())


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
        parameters=None if lm is None else lm.model.num_parameters,
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
    config = RunFolder(result.folder).read_config()
    return (
        f"{contender.name}, seed {result.seed}: {result.nats_per_token:.4f} nats per token,"
        f" {config.model.hidden_size} units, learning rate {config.training.lr:g},"
        f" {format_count(result.tokens)} tokens in {result.seconds:.0f} s"
    )


def _slug(name: str) -> str:
    """A folder's name: letters and digits of the contender's."""
    return re.sub(r"\W+", "-", name).strip("-") or "contender"


class _Brief(Progress):
    """Passes on what a person wants to know of one run among many."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def moment(self, moment: Moment) -> None:
        self._progress.moment(moment)
