"""Training and prediction of the lyrics chapter (chapter 6) of v1, the Chinese first edition.

In v1, the model is a function `rnn(inputs, state, params)` whose inputs and outputs are lists of
matrices (batch, vocab), one per step. Two adapters give it the interface of section 8.5, so that
the training loop and the prediction of `recurra.d2l.training` serve both editions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recurra import d2l
from recurra.d2l.batches import Ids
from recurra.d2l.models import Device
from recurra.d2l.training import greedy, train_epoch
from recurra.errors import ConfigError


class _FunctionNet:
    """Adapter of a v1 `rnn` function and its parameters to the models of section 8.5."""

    def __init__(
        self,
        rnn: Callable[..., Any],
        params: Any,
        init_rnn_state: Callable[..., Any],
        num_hiddens: int,
        vocab_size: int,
    ) -> None:
        self.rnn, self.params, self.init_rnn_state = rnn, params, init_rnn_state
        self.num_hiddens, self.vocab_size = num_hiddens, vocab_size

    def __call__(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        outputs, state = self.rnn(d2l.to_onehot(inputs, self.vocab_size), state, self.params)
        return torch.cat(tuple(outputs)), state

    def begin_state(self, batch_size: int, device: Device) -> Any:
        return self.init_rnn_state(batch_size, self.num_hiddens, device)


class _ModuleNet:
    """Adapter of a v1 `RNNModel`, which has no `begin_state` and starts from None."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.params = model, list(model.parameters())

    def __call__(self, inputs: Tensor, state: Any) -> Any:
        return self.model(inputs, state)

    def begin_state(self, batch_size: int, device: Device) -> None:
        return None


def _continue_text(
    prefix: str,
    num_chars: int,
    net: _FunctionNet | _ModuleNet,
    device: Device,
    idx_to_char: Sequence[str],
    char_to_idx: Mapping[str, int],
) -> str:
    unknown = [char for char in prefix if char not in char_to_idx]
    if unknown:
        raise ConfigError(
            f"character {unknown[0]!r} of the prefix {prefix!r} is not in the vocabulary"
        )
    ids = greedy([char_to_idx[char] for char in prefix], num_chars, net, device)
    return "".join(idx_to_char[i] for i in ids)


def predict_rnn(
    prefix: str,
    num_chars: int,
    rnn: Callable[..., Any],
    params: Any,
    init_rnn_state: Callable[..., Any],
    num_hiddens: int,
    vocab_size: int,
    device: Device,
    idx_to_char: Sequence[str],
    char_to_idx: Mapping[str, int],
) -> str:
    """Return the prefix and `num_chars` greedily predicted characters after it.

    Raises:
        ConfigError: the prefix is empty or contains a character that is not in the vocabulary.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> def next_letter(inputs, state, params):
        ...     return [X @ params[0] for X in inputs], state
        >>> def init_state(batch_size, num_hiddens, device):
        ...     return ()
        >>> params = [torch.eye(3).roll(1, dims=1)]
        >>> char_to_idx = {"a": 0, "b": 1, "c": 2}
        >>> d2l.predict_rnn(
        ...     "a", 4, next_letter, params, init_state, 0, 3, "cpu", list(char_to_idx), char_to_idx
        ... )
        'abcab'
    """
    net = _FunctionNet(rnn, params, init_rnn_state, num_hiddens, vocab_size)
    return _continue_text(prefix, num_chars, net, device, idx_to_char, char_to_idx)


def predict_rnn_pytorch(
    prefix: str,
    num_chars: int,
    model: nn.Module,
    vocab_size: int,
    device: Device,
    idx_to_char: Sequence[str],
    char_to_idx: Mapping[str, int],
) -> str:
    """Return the prefix and `num_chars` greedily predicted characters after it.

    The first call is `model(X, None)`. `vocab_size` is part of the v1 signature and is ignored.

    Raises:
        ConfigError: the prefix is empty or contains a character that is not in the vocabulary.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> char_to_idx = {"a": 0, "b": 1, "c": 2}
        >>> net = d2l.RNNModel(torch.nn.RNN(3, 16), vocab_size=3)
        >>> text = d2l.predict_rnn_pytorch("ab", 4, net, 3, "cpu", list(char_to_idx), char_to_idx)
        >>> len(text)
        6
    """
    net = _ModuleNet(model)
    return _continue_text(prefix, num_chars, net, device, idx_to_char, char_to_idx)


def _train_and_print(
    net: _FunctionNet | _ModuleNet,
    updater: torch.optim.Optimizer | Callable[..., Any],
    predict: Callable[[str], str],
    device: Device,
    corpus_indices: Ids,
    is_random_iter: bool,
    num_epochs: int,
    num_steps: int,
    clipping_theta: float,
    batch_size: int,
    pred_period: int,
    prefixes: Sequence[str],
) -> None:
    batches_of = d2l.data_iter_random if is_random_iter else d2l.data_iter_consecutive
    loss = nn.CrossEntropyLoss()
    for epoch in range(1, num_epochs + 1):
        start = time.perf_counter()
        ppl, _ = train_epoch(
            net,
            batches_of(corpus_indices, batch_size, num_steps, device),
            loss,
            updater,
            device,
            is_random_iter,
            lambda: d2l.grad_clipping(net.params, clipping_theta, device),
        )
        if epoch % pred_period == 0:
            seconds = time.perf_counter() - start
            print(f"epoch {epoch}, perplexity {ppl:f}, time {seconds:.2f} sec")
            for prefix in prefixes:
                print(" -", predict(prefix))


def train_and_predict_rnn(
    rnn: Callable[..., Any],
    get_params: Callable[[], Any],
    init_rnn_state: Callable[..., Any],
    num_hiddens: int,
    vocab_size: int,
    device: Device,
    corpus_indices: Ids,
    idx_to_char: Sequence[str],
    char_to_idx: Mapping[str, int],
    is_random_iter: bool,
    num_epochs: int,
    num_steps: int,
    lr: float,
    clipping_theta: float,
    batch_size: int,
    pred_period: int,
    pred_len: int,
    prefixes: Sequence[str],
) -> None:
    """Train with SGD; every `pred_period` epochs, print perplexity, time and predictions.

    Raises:
        SourceError: the corpus is too short for one batch.
        NonFiniteError: a gradient became NaN or infinite.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> def get_params():
        ...     return [torch.zeros(3, 3, requires_grad=True)]
        >>> def init_state(batch_size, num_hiddens, device):
        ...     return ()
        >>> def bigram(inputs, state, params):
        ...     return [X @ params[0] for X in inputs], state
        >>> d2l.train_and_predict_rnn(
        ...     bigram, get_params, init_state, 0, 3, "cpu", [0, 1, 2] * 20, list("abc"),
        ...     {"a": 0, "b": 1, "c": 2}, is_random_iter=True, num_epochs=2, num_steps=5, lr=10,
        ...     clipping_theta=1, batch_size=2, pred_period=2, pred_len=4, prefixes=["a"],
        ... )
        epoch 2, perplexity ..., time ... sec
         - abcab
    """
    params = get_params()

    def predict(prefix: str) -> str:
        return d2l.predict_rnn(
            prefix,
            pred_len,
            rnn,
            params,
            init_rnn_state,
            num_hiddens,
            vocab_size,
            device,
            idx_to_char,
            char_to_idx,
        )

    _train_and_print(
        _FunctionNet(rnn, params, init_rnn_state, num_hiddens, vocab_size),
        lambda batch_size: d2l.sgd(params, lr, batch_size),
        predict,
        device,
        corpus_indices,
        is_random_iter,
        num_epochs,
        num_steps,
        clipping_theta,
        batch_size,
        pred_period,
        prefixes,
    )


def train_and_predict_rnn_pytorch(
    model: nn.Module,
    num_hiddens: int,
    vocab_size: int,
    device: Device,
    corpus_indices: Ids,
    idx_to_char: Sequence[str],
    char_to_idx: Mapping[str, int],
    num_epochs: int,
    num_steps: int,
    lr: float,
    clipping_theta: float,
    batch_size: int,
    pred_period: int,
    pred_len: int,
    prefixes: Sequence[str],
) -> None:
    """Train a module with Adam on adjacent windows; prints the same as `train_and_predict_rnn`.

    `num_hiddens` is part of the v1 signature and is ignored.

    Raises:
        SourceError: the corpus is too short for one batch.
        NonFiniteError: a gradient became NaN or infinite.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> net = d2l.RNNModel(torch.nn.RNN(3, 16), vocab_size=3)
        >>> d2l.train_and_predict_rnn_pytorch(
        ...     net, 16, 3, "cpu", [0, 1, 2] * 20, list("abc"), {"a": 0, "b": 1, "c": 2},
        ...     num_epochs=2, num_steps=5, lr=0.1, clipping_theta=1, batch_size=2,
        ...     pred_period=2, pred_len=4, prefixes=["a"],
        ... )
        epoch 2, perplexity ..., time ... sec
         - a...
    """
    model.to(device)

    def predict(prefix: str) -> str:
        return d2l.predict_rnn_pytorch(
            prefix, pred_len, model, vocab_size, device, idx_to_char, char_to_idx
        )

    _train_and_print(
        _ModuleNet(model),
        torch.optim.Adam(model.parameters(), lr=lr),
        predict,
        device,
        corpus_indices,
        False,
        num_epochs,
        num_steps,
        clipping_theta,
        batch_size,
        pred_period,
        prefixes,
    )
