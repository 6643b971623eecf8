"""The book's training loop and greedy prediction (section 8.5), for both kinds of models.

A `net` is a torch module with `begin_state`, or any object with `params`, `begin_state` and a
call `net(X, state)`: the learner's own classes work as well as those of `recurra.d2l.models`.
Knows no files; draws only through `Animator`. The trainer with validation, checkpoints and resume
is `recurra.training`, not this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recurra.d2l.measuring import Accumulator, Timer
from recurra.d2l.models import Device
from recurra.d2l.plotting import Animator
from recurra.d2l.updates import clear_gradients, detached, grad_clipping, perplexity, sgd
from recurra.errors import ConfigError, SourceError

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Updater = torch.optim.Optimizer | Callable[..., Any]

PREFIXES = ("time traveller", "traveller")
PREDICTED = 50
REPORT_EVERY = 10


@torch.no_grad()
def greedy(prefix_ids: Sequence[int], num_preds: int, net: Any, device: Device) -> list[int]:
    """The prefix and the `num_preds` ids after it, each the likeliest one; no gradient is tracked.

    Raises:
        ConfigError: the prefix is empty, so there is nothing to predict from.
    """
    if not prefix_ids:
        raise ConfigError("the prefix is empty; the model must read at least one token")
    ids = list(prefix_ids)
    state = net.begin_state(batch_size=1, device=device)
    # Warm-up: the prefix but its last token moves the state, and its predictions are not used.
    for token_id in ids[:-1]:
        _, state = net(torch.tensor([[token_id]], device=device), state)
    for _ in range(num_preds):
        logits, state = net(torch.tensor([[ids[-1]]], device=device), state)
        ids.append(int(logits.argmax(dim=1)))
    return ids


def predict_ch8(prefix: str, num_preds: int, net: Any, vocab: Any, device: Device) -> str:
    """The prefix and the `num_preds` tokens after it, each the likeliest one.

    Tokens of the prefix that `vocab` does not know are read as `<unk>`, and appear so.

    Raises:
        ConfigError: the prefix is empty.
    """
    ids = greedy([vocab[token] for token in prefix], num_preds, net, device)
    return "".join(vocab.idx_to_token[i] for i in ids)


def train_epoch(
    net: Any,
    train_iter: Batches,
    loss: Loss,
    updater: Updater,
    device: Device,
    use_random_iter: bool,
    theta: float,
) -> tuple[float, float]:
    """One pass over the batches: (perplexity, tokens per second); see `train_epoch_ch8`.

    `theta` is the largest norm of the gradients.
    """
    state, timer, metric = None, Timer(), Accumulator(2)
    for inputs, targets in train_iter:
        if state is None or use_random_iter:
            state = net.begin_state(batch_size=inputs.shape[0], device=device)
        else:
            state = detached(state)
        labels = targets.T.reshape(-1).long().to(device)
        logits, state = net(inputs.to(device), state)
        # The book's mean() also serves losses that give one value per token.
        mean_loss = loss(logits, labels).mean()
        # Also when the updater clears them itself: the learner's own sgd often does not.
        clear_gradients(net)
        mean_loss.backward()  # type: ignore[no-untyped-call]
        grad_clipping(net, theta)
        if isinstance(updater, torch.optim.Optimizer):
            updater.step()
        else:
            updater(batch_size=1)
        metric.add(mean_loss * labels.numel(), labels.numel())
    if not metric[1]:
        raise SourceError(
            "there is no batch to train on: the text is shorter than batch_size * num_steps"
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
    """One pass over the batches, gradients clipped to norm 1: (perplexity, tokens per second).

    The state starts from `begin_state`, and again for every batch when `use_random_iter`;
    otherwise it is carried over, cut off from its gradient. `updater` is a torch optimizer, or is
    called as updater(batch_size=1).

    Raises:
        SourceError: there was no batch to train on.
        NonFiniteError: a gradient became NaN or infinite.
    """
    return train_epoch(net, train_iter, loss, updater, device, use_random_iter, theta=1)


def train_ch8(
    net: Any,
    train_iter: Batches,
    vocab: Any,
    lr: float,
    num_epochs: int,
    device: Device,
    use_random_iter: bool = False,
) -> None:
    """Train with SGD and clipping; every 10 epochs write a continuation and add a point.

    At the end prints perplexity, speed, and what follows "time traveller" and "traveller".

    Raises:
        ConfigError: `num_epochs` is below 1.
        NonFiniteError: a gradient became NaN or infinite.
    """
    if num_epochs < 1:
        raise ConfigError(f"num_epochs is {num_epochs}; it must be at least 1")
    loss = nn.CrossEntropyLoss()
    animator = Animator(
        xlabel="epoch", ylabel="perplexity", legend=["train"], xlim=[REPORT_EVERY, num_epochs]
    )
    updater: Updater
    if isinstance(net, nn.Module):
        updater = torch.optim.SGD(net.parameters(), lr)
    else:

        def updater(batch_size: int) -> None:
            sgd(net.params, lr, batch_size)

    for epoch in range(1, num_epochs + 1):
        ppl, speed = train_epoch_ch8(net, train_iter, loss, updater, device, use_random_iter)
        if epoch % REPORT_EVERY == 0:
            print(predict_ch8(PREFIXES[0], PREDICTED, net, vocab, device))
            animator.add(epoch, [ppl])
    print(f"perplexity {ppl:.1f}, {speed:.1f} tokens/sec on {device!s}")
    for prefix in PREFIXES:
        print(predict_ch8(prefix, PREDICTED, net, vocab, device))


def evaluate_loss(net: Callable[[Tensor], Tensor], data_iter: Batches, loss: Loss) -> float:
    """Mean loss of a model without state over all examples (sections 4.4 and 8.1)."""
    metric = Accumulator(2)
    for inputs, targets in data_iter:
        predicted = net(inputs)
        losses = loss(predicted, targets.reshape(predicted.shape))
        metric.add(losses.sum(), losses.numel())
    return metric[0] / metric[1]
