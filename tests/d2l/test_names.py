import subprocess
import sys

import pytest
import torch

from recurra import d2l

# What the notebooks of chapters 8 and 9 and of v1's lyrics chapter call.
BOOK = [
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


def test_the_public_names_are_the_books():
    assert sorted(d2l.__all__) == sorted(BOOK)
    assert all(hasattr(d2l, name) for name in BOOK)
    assert set(BOOK) | {"torch", "plt", "np", "nn", "F"} <= set(dir(d2l))


def test_the_libraries_are_reached_through_d2l():
    assert d2l.torch is torch
    assert d2l.nn is torch.nn
    assert d2l.F is torch.nn.functional
    assert d2l.np.arange(2).tolist() == [0, 1]


def test_matplotlib_is_loaded_only_when_something_is_drawn():
    code = "import sys; from recurra import d2l; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_unknown_name_says_what_is_covered_and_what_is_near():
    with pytest.raises(AttributeError, match=r"chapters 8 and 9.*train_ch8"):
        _ = d2l.train_ch3
    with pytest.raises(AttributeError, match="no 'MultiHeadAttention'"):
        _ = d2l.MultiHeadAttention
