"""`Animator`, `plot` and `set_axes` of `recurra.d2l`, with and without matplotlib."""

import builtins
import sys
import types

import pytest
import torch

from recurra import d2l
from recurra.errors import MissingExtraError


@pytest.fixture
def no_matplotlib(monkeypatch):
    real_import = builtins.__import__

    def import_without_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_without_matplotlib)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


class Display(types.ModuleType):
    """Substitute for IPython.display that records its calls."""

    def __init__(self):
        super().__init__("IPython.display")
        self.events = []

    def clear_output(self, wait):
        self.events.append(("clear", wait))

    def display(self, picture):
        self.events.append(("show", picture))

    def SVG(self, data):  # noqa: N802
        return data


@pytest.fixture
def notebook(monkeypatch):
    display = Display()
    ipython = types.ModuleType("IPython")
    ipython.version_info = (9, 0)
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    inline = types.ModuleType("matplotlib_inline.backend_inline")
    inline.set_matplotlib_formats = lambda *formats: None
    monkeypatch.setitem(sys.modules, "matplotlib_inline.backend_inline", inline)
    return display


def test_animator_add_stores_points_of_each_curve():
    animator = d2l.Animator(legend=["train", "test"])
    animator.add(1, (0.5, None))
    animator.add(2, [torch.tensor(0.25), 0.75])
    animator.add([3, 4], [0.125, 0.5])
    assert animator.X == [[1.0, 2.0, 3.0], [2.0, 4.0]]
    assert animator.Y == [[0.5, 0.25, 0.125], [0.75, 0.5]]


def test_animator_without_notebook_prints_points_to_stderr(capsys):
    animator = d2l.Animator(xlabel="epoch", ylabel="perplexity", legend=["train"])
    animator.add(10, [12.3456])
    animator.add(20, [None])
    d2l.Animator().add(1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["epoch 10: train perplexity 12.35", "x 1: y 2"]


def test_animator_figure_is_current_figure_of_pyplot(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot", reason="the plot extra is not installed")
    animator = d2l.Animator(xlabel="epoch", legend=["train", "test"])
    animator.add(1, (2.0, 3.0))
    animator.add(2, (1.0, None))
    assert plt.gcf() is animator.fig
    assert curves(plt.gca()) == [([1, 2], [2, 1]), ([1], [3])]
    assert plt.gca().get_legend() is not None
    plt.savefig(tmp_path / "picture.png")
    blue = plt.imread(tmp_path / "picture.png")[..., :3] @ [-1, 0, 1] > 0.5
    assert blue.sum() > 100  # the first curve of matplotlib's default colours


def test_train_ch8_then_savefig_saves_curve(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot", reason="the plot extra is not installed")
    net = d2l.RNNModel(torch.nn.RNN(11, 4), 11)
    batches = [(torch.tensor([[0, 1]]), torch.tensor([[1, 2]]))]
    d2l.train_ch8(net, batches, d2l.Vocab(list("time travler")), 1, 30, "cpu")
    d2l.plt.savefig(tmp_path / "picture.svg")
    assert "perplexity" in plt.gca().get_ylabel()
    (line,) = plt.gca().lines
    assert line.get_xdata().tolist() == [10, 20, 30]
    assert (tmp_path / "picture.svg").read_text().count("stroke: #1f77b4") > 0


def test_animator_second_figure_leaves_first_unchanged():
    plt = pytest.importorskip("matplotlib.pyplot", reason="the plot extra is not installed")
    first, second = d2l.Animator(), d2l.Animator()
    first.add(1, 2.0)
    second.add(1, 3.0)
    assert plt.gcf() is second.fig
    assert curves(first.axes[0]) == [([1], [2])]
    assert curves(plt.gca()) == [([1], [3])]


class InlineBackend:
    """The part of pyplot that the display in a notebook reads, with the inline backend."""

    def __init__(self, figure):
        self.open = {figure.number: figure}

    def get_backend(self):
        return "module://matplotlib_inline.backend_inline"

    def get_fignums(self):
        return list(self.open)

    def figure(self, number):
        return self.open[number]


def test_animator_with_inline_backend_clears_picture_before_end_of_cell(notebook, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    animator = d2l.Animator()
    pyplot = InlineBackend(animator.fig)
    monkeypatch.setattr(d2l, "plt", pyplot, raising=False)
    animator.add(1, 2.0)
    animator.add(2, 1.0)  # too early for another picture; the backend shows the last one
    assert notebook.events == [("show", animator.fig), ("clear", True)]
    pyplot.open = {
        animator.fig.number: object()
    }  # closed at the end of the cell, and its number assigned again
    animator.add(3, 0.5)
    assert [kind for kind, _ in notebook.events[2:]] == ["clear", "show"]


def test_animator_save_works_without_display(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    animator = d2l.Animator(xlabel="epoch", ylabel="perplexity", legend=["train"], xlim=[10, 10])
    animator.add(10, [3.0])
    animator.add(20, [2.0])
    animator.save(tmp_path / "loss.svg")
    animator.save(tmp_path / "loss.png")
    assert "<svg" in (tmp_path / "loss.svg").read_text()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (line,) = animator.axes[0].lines
    assert line.get_xydata().tolist() == [[10, 3], [20, 2]]
    assert animator.axes[0].get_ylabel() == "perplexity"


def test_animator_in_notebook_replaces_previous_figure(notebook, capsys):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    animator = d2l.Animator()
    animator.add(1, 2.0)
    animator.add(2, 1.0)
    assert [kind for kind, _ in notebook.events] == ["clear", "show", "clear", "show"]
    assert notebook.events[0] == ("clear", True)
    assert b"<svg" in notebook.events[3][1]
    assert notebook.events[3] != notebook.events[1]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("no_matplotlib")
def test_animator_without_matplotlib_stores_points_only(tmp_path, capsys):
    animator = d2l.Animator(legend=["train"])
    animator.add(1, [2.0])
    assert animator.Y == [[2.0]]
    assert "train y 2" in capsys.readouterr().err
    with pytest.raises(MissingExtraError, match="plot"):
        animator.save(tmp_path / "loss.svg")
    with pytest.raises(MissingExtraError, match=r"pip install .*\[plot\]"):
        _ = d2l.plt
    with pytest.raises(MissingExtraError):
        d2l.plot([1, 2])


@pytest.mark.usefixtures("no_matplotlib", "notebook")
def test_animator_in_notebook_without_matplotlib_prints_points(capsys):
    d2l.Animator().add(1, 2)
    assert capsys.readouterr().err == "x 1: y 2\n"


@pytest.fixture
def axes():
    figure = pytest.importorskip("matplotlib.figure", reason="the plot extra is not installed")
    return figure.Figure().subplots()


def curves(axes):
    return [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines]


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        (([5, 6, 7],), [([0, 1, 2], [5, 6, 7])]),
        (([[5, 6], [7, 8, 9]],), [([0, 1], [5, 6]), ([0, 1, 2], [7, 8, 9])]),
        (([1, 2], [[3, 4], [5, 6]]), [([1, 2], [3, 4]), ([1, 2], [5, 6])]),
        (([[1, 2], [3]], [[3, 4], [5]]), [([1, 2], [3, 4]), ([3], [5])]),
        ((torch.tensor([1, 2]), [torch.tensor([3, 4])]), [([1, 2], [3, 4])]),
        ((torch.tensor([[1, 2], [3, 4]]),), [([0, 1], [1, 2]), ([0, 1], [3, 4])]),
    ],
)
def test_plot_draws_one_or_several_curves(axes, given, drawn):
    axes.plot([9, 9])  # `plot` clears earlier curves
    d2l.plot(*given, xlabel="time", ylabel="x", legend=["a"], xlim=[0, 4], axes=axes)
    assert curves(axes) == drawn
    assert axes.get_xlabel() == "time"


def test_set_axes_sets_limits_scale_and_label(axes):
    d2l.set_axes(axes, "time", None, [1, 3], [2, 2], "linear", "log", ["a"])
    assert axes.get_xlim() == (1, 3)
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == ""


def test_plot_labels_are_inside_the_figure() -> None:
    figure = d2l.plt.figure(figsize=(3.5, 2.5))
    d2l.plot([1000, 2000], [1000.0, 2000.0], xlabel="x", ylabel="f(x)")
    figure.canvas.draw()
    (axes,) = figure.axes
    for label in (axes.xaxis.label, axes.yaxis.label):
        box = label.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
    d2l.plt.close(figure)
