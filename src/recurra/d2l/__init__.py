"""The functions and classes of *Dive into Deep Learning* (the book) for its notebooks.

A notebook of the book's chapters on language models runs when `from d2l import torch as d2l`
becomes `from recurra import d2l`. The editions and their chapters:

- English edition 1.0: chapter 9 (recurrent networks) and sections 10.1 to 10.4 (LSTM, GRU, deep and
  bidirectional networks), with the classes of chapter 3 that these use. Classes: `TimeMachine`,
  `RNNScratch`, `RNNLM`, `Trainer`, ...
- English edition 0.17 and Chinese second edition: sections 8.1 to 9.4. Functions:
  `load_data_time_machine`, `train_ch8`, ...
- Chinese first edition: the lyrics chapter (v1). Functions: `train_and_predict_rnn`, ...

The modules name sections of the edition 0.17, those in `english_1_0/` sections of edition 1.0.

Names, signatures and behaviour are those of the book. Where the code of the book fails silently (an
empty prefix, NaN gradients), this package raises an error. Functions look up other names of d2l
when they are called, so that a replaced name (`d2l.grad_clipping = clip`) takes effect. Two names
exist in both English editions with different meanings, and d2l has the earlier ones: the ids of
`Vocab` are in the order of frequency (see `SortedVocab`), and `try_all_gpus` returns the CPU if
there is no GPU.

    text.py       read_time_machine, tokenize, Vocab, load_data_jay_lyrics, ...
    batches.py    seq_data_iter_*, SeqDataLoader, load_data_time_machine, data_iter_*
    models.py     RNNModelScratch, RNNModel, to_onehot
    updates.py    grad_clipping, sgd
    training.py   predict_ch8, train_epoch_ch8, train_ch8
    lyrics.py     train_and_predict_rnn, predict_rnn and their _pytorch forms (v1)
    plotting.py   Animator, plot, set_axes, set_figsize
    measuring.py  Timer, Accumulator        devices.py  try_gpu, try_all_gpus, cpu, gpu, num_gpus
    english_1_0/  Module, DataModule, Trainer, TimeMachine, RNNScratch, RNN, RNNLM, ...

`d2l.torch`, `d2l.nn`, `d2l.F`, `d2l.np` and `d2l.plt` are available too; `plt` requires the `plot`
extra. So are the names of edition 1.0 for functions of torch, such as `d2l.randn`. Machine
translation and other chapters are not supported.
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
from recurra.d2l.devices import cpu, gpu, num_gpus, try_all_gpus, try_gpu
from recurra.d2l.english_1_0.board import ProgressBoard
from recurra.d2l.english_1_0.data import DataModule, SortedVocab, TimeMachine
from recurra.d2l.english_1_0.hyperparameters import HyperParameters, add_to_class
from recurra.d2l.english_1_0.language_models import RNNLM, RNNLMScratch
from recurra.d2l.english_1_0.modules import Classifier, LinearRegression, Module
from recurra.d2l.english_1_0.recurrent import GRU, LSTM, RNN, GRUScratch, LSTMScratch, RNNScratch
from recurra.d2l.english_1_0.tensors import ALIASES, check_len, check_shape
from recurra.d2l.english_1_0.trainer import Trainer
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
    "GRU",
    "LSTM",
    "RNN",
    "RNNLM",
    "Accumulator",
    "Animator",
    "Classifier",
    "DataModule",
    "GRUScratch",
    "HyperParameters",
    "LSTMScratch",
    "LinearRegression",
    "Module",
    "ProgressBoard",
    "RNNLMScratch",
    "RNNModel",
    "RNNModelScratch",
    "RNNScratch",
    "SeqDataLoader",
    "SortedVocab",
    "TimeMachine",
    "Timer",
    "Trainer",
    "Vocab",
    "add_to_class",
    "check_len",
    "check_shape",
    "count_corpus",
    "cpu",
    "data_iter_consecutive",
    "data_iter_random",
    "download",
    "evaluate_loss",
    "gpu",
    "grad_clipping",
    "load_array",
    "load_corpus_time_machine",
    "load_data_jay_lyrics",
    "load_data_time_machine",
    "num_gpus",
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
    if name in ALIASES:
        return ALIASES[name]
    near = difflib.get_close_matches(name, [*__all__, *ALIASES, *_LIBRARIES, "plt"])
    hint = f"; similar names: {', '.join(near)}" if near else ""
    raise AttributeError(
        f"recurra.d2l has no {name!r}; it supports the language models of the book: chapter 9 and"
        f" sections 10.1 to 10.4 of the English edition 1.0, sections 8.1 to 9.4 of the English"
        f" edition 0.17 and the Chinese second edition, and the lyrics chapter of the Chinese first"
        f" edition{hint}",
        name=name,
    )


def __dir__() -> list[str]:
    return sorted([*globals(), *ALIASES, *_LIBRARIES, "plt"])
