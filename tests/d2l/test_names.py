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

# The names of chapters 9 and 10 of the English edition 1.0, and SortedVocab, its vocabulary.
NAMES_OF_EDITION_1_0 = [
    "Classifier",
    "DataModule",
    "GRU",
    "GRUScratch",
    "HyperParameters",
    "LSTM",
    "LSTMScratch",
    "LinearRegression",
    "Module",
    "ProgressBoard",
    "RNN",
    "RNNLM",
    "RNNLMScratch",
    "RNNScratch",
    "SortedVocab",
    "TimeMachine",
    "Trainer",
    "add_to_class",
    "check_len",
    "check_shape",
    "cpu",
    "gpu",
    "num_gpus",
]


def test_d2l_exports_names_of_the_book():
    names = [*BOOK_NAMES, *NAMES_OF_EDITION_1_0]
    assert sorted(d2l.__all__) == sorted(names)
    assert all(hasattr(d2l, name) for name in names)
    assert set(names) | {"torch", "plt", "np", "nn", "F"} <= set(dir(d2l))


def test_d2l_functions_of_torch_have_names_of_edition_1_0():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
    assert d2l.numpy(x).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert d2l.size(x) == 6
    assert d2l.reshape(x, (3, 2)).shape == (3, 2)
    assert d2l.to(x, d2l.cpu()) is x
    assert d2l.reduce_sum(x, 1).tolist() == [6, 15]
    assert d2l.reduce_mean(x).item() == 3.5
    assert d2l.argmax(x, axis=1).tolist() == [2, 2]
    assert d2l.astype(x, d2l.int32).dtype == torch.int32
    assert d2l.transpose(x).shape == (3, 2)
    assert d2l.expand_dims(x, 0).shape == (1, 2, 3)
    assert d2l.swapaxes(x, 0, 1).shape == (3, 2)
    assert d2l.repeat(x, (2, 1)).shape == (4, 3)
    assert d2l.concat is torch.cat
    assert d2l.batch_matmul is torch.bmm
    assert d2l.nn_Module is torch.nn.Module
    assert all(getattr(d2l, name) is getattr(torch, name) for name in SAME_NAMES.split())


SAME_NAMES = """
    ones_like ones zeros_like zeros tensor arange meshgrid sin sinh cos cosh tanh linspace exp log
    normal rand randn matmul int32 int64 float32 stack abs eye sigmoid
"""


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
    with pytest.raises(AttributeError, match=r"sections 8.1 to 9.4.*train_ch8"):
        _ = d2l.train_ch3
    with pytest.raises(AttributeError, match="no 'MultiHeadAttention'"):
        _ = d2l.MultiHeadAttention
