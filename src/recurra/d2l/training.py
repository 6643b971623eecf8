"""Training loop and greedy prediction of the book (section 8.5).

A `net` is a torch module with `begin_state`, or a callable `net(X, state)` with `params` and
`begin_state`. It can be defined in a notebook or come from `recurra.d2l.models`. For training with
validation and checkpoints, see `recurra.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recurra import d2l
from recurra.d2l.models import Device
from recurra.d2l.updates import clear_gradients, detached, perplexity
from recurra.errors import ConfigError, SourceError
from recurra.runtime.openmp import limited_spinning

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Updater = torch.optim.Optimizer | Callable[..., Any]

PREFIXES = ("time traveller", "traveller")
PREDICTED = 50
REPORT_EVERY = 10


@torch.no_grad()
def greedy(prefix_ids: Sequence[int], num_preds: int, net: Any, device: Device) -> list[int]:
    """Return the prefix and `num_preds` ids after it, each the most probable one.

    Raises:
        ConfigError: the prefix is empty.
    """
    if not prefix_ids:
        raise ConfigError("the prefix is empty; it must contain at least one token")
    ids = list(prefix_ids)
    state = net.begin_state(batch_size=1, device=device)
    # Warm-up: the prefix without its last token only updates the state.
    for token_id in ids[:-1]:
        _, state = net(torch.tensor([[token_id]], device=device), state)
    for _ in range(num_preds):
        logits, state = net(torch.tensor([[ids[-1]]], device=device), state)
        ids.append(int(logits.argmax(dim=1)))
    return ids


def predict_ch8(prefix: str, num_preds: int, net: Any, vocab: Any, device: Device) -> str:
    """Return the prefix and `num_preds` tokens after it, each the most probable one.

    Tokens of the prefix that are not in `vocab` are read and returned as `<unk>`.

    Raises:
        ConfigError: the prefix is empty.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> vocab = d2l.Vocab(list("time traveller"))
        >>> net = d2l.RNNModel(torch.nn.RNN(len(vocab), 16), len(vocab))
        >>> text = d2l.predict_ch8("time ", 10, net, vocab, "cpu")
        >>> text.startswith("time ")
        True
    """
    ids = greedy([vocab[token] for token in prefix], num_preds, net, device)
    return "".join(vocab.idx_to_token[i] for i in ids)


@limited_spinning()
def train_epoch(
    net: Any,
    train_iter: Batches,
    loss: Loss,
    updater: Updater,
    device: Device,
    use_random_iter: bool,
    clip_gradients: Callable[[], None],
) -> tuple[float, float]:
    """Train for one epoch and return (perplexity, tokens per second).

    `clip_gradients` is called after each backward pass. See `train_epoch_ch8` for the other
    arguments and the errors.
    """
    state, timer, metric = None, d2l.Timer(), d2l.Accumulator(2)
    for inputs, targets in train_iter:
        if state is None or use_random_iter:
            state = net.begin_state(batch_size=inputs.shape[0], device=device)
        else:
            state = detached(state)
        labels = targets.T.reshape(-1).long().to(device)
        logits, state = net(inputs.to(device), state)
        # mean() also supports losses that return one value per token, as in the book.
        mean_loss = loss(logits, labels).mean()
        # Updaters that are defined in notebooks often do not clear the gradients.
        clear_gradients(net)
        mean_loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients()
        if isinstance(updater, torch.optim.Optimizer):
            updater.step()
        else:
            updater(batch_size=1)
        metric.add(mean_loss * labels.numel(), labels.numel())
    if not metric[1]:
        raise SourceError(
            "there is no batch to train on because the text is shorter than batch_size * num_steps"
        )
    return perplexity(metric[0] / metric[1]), metric[1] / timer.stop()


def train_epoch_ch8(
    net: Any,
    train_iter: Batches,
    loss: Loss,
    updater: Updater,
    device: Device,
    use_random_iter: bool,
) -> tuple[float, float]:
    """Train for one epoch and return (perplexity, tokens per second).

    Gradients are clipped to norm 1.

    Args:
        net: the model.
        train_iter: batches (X, Y), both (batch, steps).
        loss: function (logits, labels).
        updater: a torch optimizer, or a function that is called as updater(batch_size=1).
        device: device of the computation.
        use_random_iter: whether each batch starts from `begin_state`. Otherwise, the detached state
            is carried from batch to batch.

    Raises:
        SourceError: there was no batch to train on.
        NonFiniteError: a gradient became NaN or infinite.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> net = d2l.RNNModel(torch.nn.RNN(3, 16), vocab_size=3)
        >>> batches = d2l.seq_data_iter_sequential([0, 1, 2] * 50, batch_size=2, num_steps=5)
        >>> loss, updater = torch.nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=1)
        >>> ppl, speed = d2l.train_epoch_ch8(net, batches, loss, updater, "cpu", False)
        >>> ppl > 1
        True
    """
    return train_epoch(
        net,
        train_iter,
        loss,
        updater,
        device,
        use_random_iter,
        lambda: d2l.grad_clipping(net, 1),
    )


def train_ch8(
    net: Any,
    train_iter: Batches,
    vocab: Any,
    lr: float,
    num_epochs: int,
    device: Device,
    use_random_iter: bool = False,
) -> None:
    """Train with SGD and gradient clipping.

    Every 10 epochs, a prediction is printed and the perplexity is added to an `Animator`. At the
    end, the perplexity, the speed and the continuations of "time traveller" and "traveller" are
    printed.

    Raises:
        ConfigError: `num_epochs` is less than 1.
        SourceError: there was no batch to train on.
        NonFiniteError: a gradient became NaN or infinite.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> text = list("time traveller " * 20)
        >>> vocab = d2l.Vocab(text)
        >>> batches = list(d2l.seq_data_iter_sequential(vocab[text], batch_size=4, num_steps=5))
        >>> net = d2l.RNNModel(torch.nn.RNN(len(vocab), 16), len(vocab))
        >>> d2l.train_ch8(net, batches, vocab, lr=1, num_epochs=2, device="cpu")
        perplexity ..., ... tokens/sec on cpu
        time traveller...
        traveller...
    """
    if num_epochs < 1:
        raise ConfigError(f"num_epochs is {num_epochs}; it must be at least 1")
    loss = nn.CrossEntropyLoss()
    animator = d2l.Animator(
        xlabel="epoch", ylabel="perplexity", legend=["train"], xlim=[REPORT_EVERY, num_epochs]
    )
    updater: Updater
    if isinstance(net, nn.Module):
        updater = torch.optim.SGD(net.parameters(), lr)
    else:

        def updater(batch_size: int) -> None:
            d2l.sgd(net.params, lr, batch_size)

    for epoch in range(1, num_epochs + 1):
        ppl, speed = d2l.train_epoch_ch8(net, train_iter, loss, updater, device, use_random_iter)
        if epoch % REPORT_EVERY == 0:
            print(d2l.predict_ch8(PREFIXES[0], PREDICTED, net, vocab, device))
            animator.add(epoch, [ppl])
    print(f"perplexity {ppl:.1f}, {speed:.1f} tokens/sec on {device!s}")
    for prefix in PREFIXES:
        print(d2l.predict_ch8(prefix, PREDICTED, net, vocab, device))


def evaluate_loss(net: Callable[[Tensor], Tensor], data_iter: Batches, loss: Loss) -> float:
    """Return the mean loss of a stateless model over all examples (sections 4.4 and 8.1).

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> data = [(torch.ones(2, 3), torch.ones(2, 1)), (torch.ones(2, 3), torch.zeros(2, 1))]
        >>> net = torch.nn.Linear(3, 1)
        >>> _ = torch.nn.init.zeros_(net.weight), torch.nn.init.zeros_(net.bias)
        >>> d2l.evaluate_loss(net, data, torch.nn.MSELoss(reduction="none"))
        0.5
    """
    metric = d2l.Accumulator(2)
    for inputs, targets in data_iter:
        predicted = net(inputs)
        losses = loss(predicted, targets.reshape(predicted.shape))
        metric.add(losses.sum(), losses.numel())
    return metric[0] / metric[1]
