"""The functions and classes of *Dive into Deep Learning* (the book) for its notebooks.

A notebook of chapters 8 and 9 (language models: sections 8.1 to 9.4 of the first edition in
PyTorch, and the lyrics chapter of the Chinese v1) runs when `from d2l import torch as d2l` becomes
`from recurra import d2l`. Names, signatures and behaviour are those of the book. Where the code of
the book fails silently (an empty prefix, NaN gradients), this package raises an error.

    text.py       read_time_machine, tokenize, Vocab, load_data_jay_lyrics, ...
    batches.py    seq_data_iter_*, SeqDataLoader, load_data_time_machine, data_iter_*
    models.py     RNNModelScratch, RNNModel, to_onehot
    updates.py    grad_clipping, sgd
    training.py   predict_ch8, train_epoch_ch8, train_ch8
    lyrics.py     train_and_predict_rnn, predict_rnn and their _pytorch forms (v1)
    plotting.py   Animator, plot, set_axes, set_figsize
    measuring.py  Timer, Accumulator        devices.py  try_gpu, try_all_gpus

`d2l.torch`, `d2l.nn`, `d2l.F`, `d2l.np` and `d2l.plt` are available too; `plt` requires the `plot`
extra. Machine translation (sections 9.5 to 9.8) and other chapters are not supported.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from recurra.d2l.batches import (
    SeqDataLoader,
    data_iter_consecutive,
    data_iter_random,
    load_array,
    load_data_time_machine,
    seq_data_iter_random,
    seq_data_iter_sequential,
)
from recurra.d2l.devices import try_all_gpus, try_gpu
from recurra.d2l.lyrics import (
    predict_rnn,
    predict_rnn_pytorch,
    train_and_predict_rnn,
    train_and_predict_rnn_pytorch,
)
from recurra.d2l.measuring import Accumulator, Timer
from recurra.d2l.models import RNNModel, RNNModelScratch, one_hot, to_onehot
from recurra.d2l.plotting import Animator, plot, pyplot, set_axes, set_figsize, use_svg_display
from recurra.d2l.text import (
    DATA_HUB,
    DATA_URL,
    Vocab,
    count_corpus,
    download,
    load_corpus_time_machine,
    load_data_jay_lyrics,
    read_time_machine,
    tokenize,
)
from recurra.d2l.training import evaluate_loss, predict_ch8, train_ch8, train_epoch_ch8
from recurra.d2l.updates import grad_clipping, sgd

__all__ = [
    "DATA_HUB",
    "DATA_URL",
    "Accumulator",
    "Animator",
    "RNNModel",
    "RNNModelScratch",
    "SeqDataLoader",
    "Timer",
    "Vocab",
    "count_corpus",
    "data_iter_consecutive",
    "data_iter_random",
    "download",
    "evaluate_loss",
    "grad_clipping",
    "load_array",
    "load_corpus_time_machine",
    "load_data_jay_lyrics",
    "load_data_time_machine",
    "one_hot",
    "plot",
    "predict_ch8",
    "predict_rnn",
    "predict_rnn_pytorch",
    "read_time_machine",
    "seq_data_iter_random",
    "seq_data_iter_sequential",
    "set_axes",
    "set_figsize",
    "sgd",
    "to_onehot",
    "tokenize",
    "train_and_predict_rnn",
    "train_and_predict_rnn_pytorch",
    "train_ch8",
    "train_epoch_ch8",
    "try_all_gpus",
    "try_gpu",
    "use_svg_display",
]

plt: Any
"""`matplotlib.pyplot`, imported on first use by `__getattr__`."""

# Notebooks use the libraries that d2l imports as attributes of d2l.
_LIBRARIES = {"torch": "torch", "nn": "torch.nn", "F": "torch.nn.functional", "np": "numpy"}


def __getattr__(name: str) -> Any:
    if name == "plt":
        return pyplot()
    if name in _LIBRARIES:
        return importlib.import_module(_LIBRARIES[name])
    near = difflib.get_close_matches(name, [*__all__, *_LIBRARIES, "plt"])
    hint = f"; similar names: {', '.join(near)}" if near else ""
    raise AttributeError(
        f"recurra.d2l has no {name!r}; it supports the language models of the book's chapters 8 and"
        f" 9 (sections 8.1 to 9.4) and of the lyrics chapter of v1{hint}",
        name=name,
    )


def __dir__() -> list[str]:
    return sorted([*globals(), *_LIBRARIES, "plt"])
