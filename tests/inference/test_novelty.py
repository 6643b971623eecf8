"""Generated lines that occur in the text of the run are left out."""

import logging

import pytest

import recurra
from recurra.cli.main import main
from recurra.errors import ConfigError, RunError
from recurra.inference.novelty import KnownLineFilter, KnownLines
from recurra.report.progress import Progress

NAMES = ["Anna", "Ben", "Carla", "Dora", "Emil", "Finn", "Greta", "Hanna", "Otto", "Rosa"]
QUICK = {"hidden_size": 16, "batch_size": 4, "num_steps": 8, "lr": 0.02, "steps": 60}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A file with a list of names, and a model that was trained on it."""
    folder = tmp_path_factory.mktemp("names")
    file = folder / "names.txt"
    file.write_text("".join(f"{name}\n" for name in NAMES * 60), "utf-8")
    return file, recurra.train(file, out=folder / "run", progress=Progress(), **QUICK)


def filtered(text, prompt="", size=1):
    lines = KnownLineFilter(KnownLines(["Anna\nB", "en\n\nDora"]), prompt)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    return "".join([*map(lines.push, pieces), lines.finish()]), lines.num_known, lines.num_lines


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("", "Anna\nAnn\nBen\nDora", ("Ann\n", 3, 4)),
        ("", "Otto\n\nBen\n", ("Otto\n\n", 1, 2)),
        ("An", "na\nBert\n", ("Bert\n", 1, 2)),
        ("Ben\nAn", "ton\nBen", ("Anton\n", 1, 2)),
        ("Ben\n", "Be", ("Be", 0, 1)),
        ("", "", ("", 0, 0)),
    ],
)
def test_new_line_filter_passes_on_new_lines(prompt, text, expected, size):
    assert filtered(text, prompt, size) == expected


def test_generate_only_new_leaves_out_lines_of_the_text(names, caplog):
    _, lm = names
    settings = {"max_new_tokens": 400, "temperature": 0.5, "seed": 1}
    with caplog.at_level(logging.INFO, "recurra"):
        plain = lm.generate("A", **settings)
        new = lm.generate("A", only_new=True, **settings)
    lines = f"A{plain}".split("\n")
    expected = [line for line in lines if line not in NAMES]
    assert 1 < len(expected) < len(lines) - 1
    assert [*filter(None, new.split("\n"))] == [*filter(None, expected)]
    assert "".join(lm.stream("A", only_new=True, **settings)) == new
    left_out = len([line for line in lines if line in NAMES])
    total = len([line for line in lines if line])
    assert f"left out {left_out} of {total} generated lines" in caplog.text


def test_generate_only_new_samples_without_new_lines_are_dropped(names):
    _, lm = names
    settings = {"num_samples": 40, "temperature": 0.5, "seed": 1, "stop": "\n"}
    plain = [f"A{text}" for text in lm.generate("A", **settings)]
    new = lm.generate("A", only_new=True, **settings)
    assert new == [text for text in plain if text not in NAMES]
    assert 0 < len(new) < 40


@pytest.mark.parametrize("tokens", ["byte", "word"])
def test_generate_only_new_decodes_every_kind_of_token(tmp_path, tokens):
    file = tmp_path / "text.txt"
    file.write_text("où est-il\n" * 200, "utf-8")
    options = QUICK | {"tokens": tokens, "steps": 300}
    lm = recurra.train(file, out=tmp_path / tokens, progress=Progress(), **options)
    assert lm.generate("où", only_new=True, greedy=True, stop="\n") == ""
    assert lm.generate("où", greedy=True, stop="\n") == " est-il"


def test_generate_cli_only_new_prints_whole_lines(names, capsys):
    _, lm = names
    arguments = ["generate", str(lm.path), "--prompt", "A", "--seed", "1", "--temperature", "0.5"]
    assert main([*arguments, "--only-new"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    assert out.split() == [line for line in plain.split() if line not in NAMES]
    assert "left out" in err
    assert main([*arguments, "--only-new", "--num-samples", "9", "--stop", r"\n"]) == 0
    samples = capsys.readouterr().out.split("\n")[1::2]
    assert samples
    assert not set(samples) & set(NAMES)


def test_generate_only_new_without_text_raises(tmp_path, names):
    _, lm = names
    lm.save(tmp_path / "copy")
    with pytest.raises(RunError, match="copy does not contain"):
        recurra.load(tmp_path / "copy").generate(only_new=True)
    without_path = recurra.LanguageModel(lm.model, lm.vocabulary, lm.config)
    with pytest.raises(RunError, match="no run directory"):
        without_path.stream(only_new=True)


def test_generate_only_new_changed_text_is_reported(tmp_path, caplog):
    file = tmp_path / "names.txt"
    file.write_text("Anna\nBen\n" * 200, "utf-8")
    out = tmp_path / "run"
    recurra.train(file, out=out, progress=Progress(), **QUICK | {"steps": 2})
    file.write_text("Otto\n" * 200, "utf-8")
    assert isinstance(recurra.load(out).generate(only_new=True, max_new_tokens=5), str)
    assert "has changed" in caplog.text
    assert "original text of the run" in caplog.text
    data = bytearray((out / "tokens.bin").read_bytes())
    data[0] ^= 1
    (out / "tokens.bin").write_bytes(data)
    with pytest.raises(RunError, match="has changed: its SHA-256"):
        recurra.load(out).generate(only_new=True)


def test_generate_only_new_letters_only_text_raises(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("one two\nthree\n" * 50, "utf-8")
    options = QUICK | {"steps": 2, "letters_only": True}
    lm = recurra.train(file, out=tmp_path / "run", progress=Progress(), **options)
    with pytest.raises(ConfigError, match="letters_only"):
        lm.generate(only_new=True)
