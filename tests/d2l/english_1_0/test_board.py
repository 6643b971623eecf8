"""`ProgressBoard` of `recurra.d2l`: curves, the figure of pyplot, and the lines on stderr."""

import pytest
import torch

from recurra import d2l


@pytest.fixture
def plt():
    return pytest.importorskip("matplotlib.pyplot", reason="the plot extra is not installed")


def curves(axes):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines
    }


def test_progress_board_averages_every_n_points():
    board = d2l.ProgressBoard()
    for x in range(5):
        board.draw(x, torch.tensor(2.0 * x), "a", every_n=2)
    board.draw(7, 1, "b", every_n=0)
    assert board.data == {"a": [(0.5, 1.0), (2.5, 5.0)], "b": [(7.0, 1.0)]}
    assert board.data["a"][0].y == 1.0
    assert board.raw_points == {"a": [(4.0, 8.0)], "b": []}


def test_progress_board_prints_latest_values_once_per_unit_of_x(capsys):
    board = d2l.ProgressBoard("epoch")
    for x, y in [(0.5, 9.0), (0.8, 8.0), (1, 7.0), (1.5, 6.0), (2, 5.0)]:
        board.draw(x, y, "loss")
    board.draw(2.5, 4.0, "loss")
    board.draw(0.5, 3.0, "loss")  # another training
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "epoch 0.5: loss 9",
        "epoch 1: loss 7",
        "epoch 2: loss 5",
        "epoch 0.5: loss 3",
    ]


def test_progress_board_draws_current_figure_of_pyplot(plt, tmp_path):
    board = d2l.ProgressBoard("step", "loss", xlim=[0, 4], yscale="log")
    for x in (1, 2, 3):
        board.draw(x, 10.0**-x, "train")
        board.draw(x, 2 * 10.0**-x, "val")
    assert plt.gcf() is board.fig
    assert len(plt.get_fignums()) == 1
    axes = plt.gca()
    assert curves(axes) == {
        "train": ([1, 2, 3], [0.1, 0.01, 0.001]),
        "val": ([1, 2, 3], [0.2, 0.02, 0.002]),
    }
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("step", "loss", "log")
    assert axes.get_xlim() == (0, 4)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "val"]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    plt.savefig(tmp_path / "picture.png")
    pixels = plt.imread(tmp_path / "picture.png")
    blue = pixels[..., 2] - pixels[..., 0] > 0.5
    assert blue.sum() > 100


def test_progress_board_shows_all_points_within_automatic_limits(plt):
    board = d2l.ProgressBoard()
    board.draw(1, 5.0, "a")
    board.draw(10, 50.0, "a")
    low, high = plt.gca().get_ylim()
    assert low < 5
    assert high > 50


def test_progress_board_after_figure_was_closed_opens_another(plt):
    board = d2l.ProgressBoard()
    board.draw(1, 2.0, "a")
    plt.close("all")
    other, _ = plt.subplots()  # takes the number of the closed figure
    board.draw(2, 3.0, "a")
    assert board.fig is not other
    assert plt.gcf() is board.fig
    assert curves(board.fig.axes[0]) == {"a": ([1, 2], [2, 3])}


def test_progress_board_draws_on_given_axes(plt):
    figure, (left, right) = plt.subplots(1, 2)
    board = d2l.ProgressBoard(axes=right)
    board.draw(1, 2.0, "a")
    assert curves(right) == {"a": ([1], [2])}
    assert not left.lines
    assert board.fig is figure


def test_progress_board_more_curves_than_styles_repeats_them(plt):
    board = d2l.ProgressBoard(ls=["-", "--"], colors=["C0", "C1", "C2"])
    for label in "abc":
        board.draw(1, 2.0, label)
    styles = [(line.get_linestyle(), line.get_color()) for line in plt.gca().lines]
    assert styles == [("-", "C0"), ("--", "C1"), ("-", "C2")]


def test_progress_board_without_display_stores_points_only(plt, capsys):
    board = d2l.ProgressBoard(display=False)
    board.draw(1, 2.0, "a")
    assert board.data == {"a": [(1, 2)]}
    assert not plt.get_fignums()
    assert capsys.readouterr().err == ""


def test_progress_board_without_matplotlib_prints_points(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    board = d2l.ProgressBoard("epoch")
    board.draw(1, 2.0, "a")
    assert board.data == {"a": [(1, 2)]}
    assert board.fig is None
    assert capsys.readouterr().err == "epoch 1: a 2\n"
