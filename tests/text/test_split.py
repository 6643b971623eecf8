"""describe_split: a note if the end of a text is not representative."""

import random

import numpy as np
import pytest

import recurra
from recurra.config import TextConfig
from recurra.data.split import describe_split, divergence, is_sorted
from recurra.data.token_file import build_token_file
from recurra.text.catalogue import locate
from recurra.text.memory import MemoryText

STORY = locate("english-story").read_text("utf-8")
CHINESE = locate("chinese-lyrics").read_text("utf-8")


def names(count=3000):
    """Return a list of invented names in alphabetical order."""
    draw = random.Random(0)
    parts = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    return sorted({"".join(draw.choices(parts, k=3)).capitalize() for _ in range(count)})


def note(text, tmp_path, **options):
    tokens, vocabulary = build_token_file([MemoryText(text)], TextConfig(**options), tmp_path)
    return describe_split(tokens, vocabulary)


@pytest.mark.parametrize("tokens", ["char", "byte", "word"])
@pytest.mark.parametrize("text", [STORY, CHINESE], ids=["english", "chinese"])
def test_describe_split_of_uniform_text_is_none(tmp_path, tokens, text):
    assert note(text, tmp_path, tokens=tokens) is None


@pytest.mark.parametrize("tokens", ["char", "byte", "word"])
def test_describe_split_of_other_language_at_end_names_divergence(tmp_path, tokens):
    text = STORY + CHINESE[: len(STORY) // 8]
    assert "different distribution" in note(text, tmp_path, tokens=tokens, val_fraction=0.1)


def test_describe_split_of_alphabetical_list_suggests_shuffle_lines(tmp_path):
    lines = names()
    message = note("\n".join(lines), tmp_path / "a")
    assert "alphabetical order" in message
    assert "--shuffle-lines" in message
    random.Random(1).shuffle(lines)
    assert note("\n".join(lines), tmp_path / "b") is None
    assert note("\n".join(sorted(lines)), tmp_path / "c", shuffle_lines=True) is None


def test_is_sorted_recognizes_only_lists_of_short_different_lines():
    assert is_sorted("\n".join(names()))
    assert not is_sorted(STORY)
    assert not is_sorted("the same line\n" * 500)
    assert not is_sorted("\n".join(names()[:20]))
    assert not is_sorted("\n".join(name + " x" * 40 for name in names()))


def test_divergence_of_sample_from_same_distribution_is_about_zero():
    draw = np.random.default_rng(0)
    shares = draw.dirichlet(np.ones(300))
    train, other = (draw.choice(300, size, p=shares) for size in (50_000, 5_000))
    assert abs(divergence(train, other, 300)) < 0.005
    assert divergence(train, (other + 7) % 300, 300) > 0.3


def test_train_alphabetical_list_prints_note_and_shuffled_list_does_not(tmp_path, listener):
    text = "\n".join(names(5000))
    sizes = {"hidden_size": 4, "batch_size": 2, "num_steps": 8, "steps": 2}
    for options, expected in (({}, True), ({"shuffle_lines": True}, False)):
        progress = listener()
        out = tmp_path / str(expected)
        recurra.train(text=text, out=out, progress=progress, **sizes, **options)
        assert any("--shuffle-lines" in m for m in progress.messages) == expected
