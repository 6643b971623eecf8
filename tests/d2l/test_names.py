"""Public names of `recurra.d2l`."""

import subprocess
import sys

import pytest
import torch

from recurra import d2l

# The names that the notebooks of chapters 8 and 9 and of the lyrics chapter of version 1 use.
BOOK_NAMES = [
    "Accumulator",
    "Animator",
    "DATA_HUB",
    "DATA_URL",
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


def test_d2l_exports_names_of_the_book():
    assert sorted(d2l.__all__) == sorted(BOOK_NAMES)
    assert all(hasattr(d2l, name) for name in BOOK_NAMES)
    assert set(BOOK_NAMES) | {"torch", "plt", "np", "nn", "F"} <= set(dir(d2l))


def test_d2l_exposes_torch_and_numpy():
    assert d2l.torch is torch
    assert d2l.nn is torch.nn
    assert d2l.F is torch.nn.functional
    assert d2l.np.arange(2).tolist() == [0, 1]


def test_d2l_import_does_not_import_matplotlib():
    code = "import sys; from recurra import d2l; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_d2l_unknown_name_error_suggests_similar_name():
    with pytest.raises(AttributeError, match=r"chapters 8 and 9.*train_ch8"):
        _ = d2l.train_ch3
    with pytest.raises(AttributeError, match="no 'MultiHeadAttention'"):
        _ = d2l.MultiHeadAttention
