"""Language models around a recurrent layer: `RNNLMScratch` (section 9.5), `RNNLM` (section 9.6).

The inputs are ids (batch, steps) and the outputs are logits (batch, steps, vocabulary).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recurra.d2l.english_1_0.modules import Batch, Classifier
from recurra.errors import ConfigError


class RNNLMScratch(Classifier):
    """Language model of a recurrent layer and the output layer H W_hq + b_q.

    The layer `rnn` maps one-hot vectors (steps, batch, vocab_size) and a state or None to
    (outputs, state). The outputs are (steps, batch, rnn.num_hiddens), or a list of the steps. The
    perplexity is plotted as "ppl".

    Args:
        rnn: the layer. `rnn.sigma` is the standard deviation of the initial W_hq.
        vocab_size: size of the vocabulary.
        lr: learning rate.

    Raises:
        ConfigError: the layer has no attribute `sigma`.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> model = d2l.RNNLMScratch(d2l.RNNScratch(28, 16), vocab_size=28, lr=1)
        >>> model(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 28])
        >>> vocab = d2l.SortedVocab(list("abcdefghijklmnopqrstuvwxyz "))
        >>> len(model.predict("it has", 20, vocab)) >= 26
        True
    """

    rnn: Any
    vocab_size: int

    def __init__(self, rnn: nn.Module, vocab_size: int, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.init_params()

    def init_params(self) -> None:
        """Create the parameters of the output layer."""
        if not hasattr(self.rnn, "sigma"):
            raise ConfigError(
                f"{type(self.rnn).__name__} has no attribute sigma, the standard deviation of the"
                " initial weights; use RNNLM, which does not need it"
            )
        weight = torch.randn(self.rnn.num_hiddens, self.vocab_size) * self.rnn.sigma
        self.W_hq = nn.Parameter(weight)
        self.b_q = nn.Parameter(torch.zeros(self.vocab_size))

    def training_step(self, batch: Batch) -> Tensor:
        """Return the loss of a batch in nats, and plot its perplexity."""
        loss = self.loss(self(*batch[:-1]), batch[-1])
        self.plot("ppl", torch.exp(loss), train=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Plot the perplexity of a batch."""
        loss = self.loss(self(*batch[:-1]), batch[-1])
        self.plot("ppl", torch.exp(loss), train=False)

    def one_hot(self, X: Tensor) -> Tensor:  # noqa: N803
        """Return ids (batch, steps) as one-hot vectors (steps, batch, vocab_size)."""
        return functional.one_hot(X.T, self.vocab_size).to(torch.float32)

    def output_layer(self, rnn_outputs: Any) -> Tensor:
        """Return the logits (batch, steps, vocab_size) of the outputs of the layer."""
        if not isinstance(rnn_outputs, Tensor):
            rnn_outputs = torch.stack(tuple(rnn_outputs))
        logits: Tensor = rnn_outputs @ self.W_hq + self.b_q
        return logits.transpose(0, 1)

    def forward(self, X: Tensor, state: Any = None) -> Tensor:  # noqa: N803
        """Return the logits (batch, steps, vocab_size) of ids (batch, steps)."""
        rnn_outputs, _ = self.rnn(self.one_hot(X), state)
        return self.output_layer(rnn_outputs)

    @torch.no_grad()
    def predict(self, prefix: Any, num_preds: int, vocab: Any, device: Any = None) -> str:
        """Return the prefix and `num_preds` tokens after it, each the most probable one.

        Dropout is not applied. Tokens of the prefix that are not in `vocab` are read and returned
        as `<unk>`.

        Args:
            prefix: a string, or a sequence of tokens.
            num_preds: number of tokens to predict.
            vocab: the vocabulary of the training.
            device: the device of the model; by default, that of the parameters.

        Raises:
            ConfigError: the prefix is empty.
        """
        if not len(prefix):
            raise ConfigError("the prefix is empty; it must contain at least one token")
        device = next(self.parameters()).device if device is None else device
        ids, state, was_training = [vocab[token] for token in prefix], None, self.training
        self.eval()
        try:
            # One step after the other, so that `rnn` may be any layer that carries a state.
            for i in range(len(prefix) + num_preds - 1):
                inputs = self.one_hot(torch.tensor([[ids[i]]], device=device))
                rnn_outputs, state = self.rnn(inputs, state)
                if i >= len(prefix) - 1:
                    ids.append(int(self.output_layer(rnn_outputs).argmax(dim=2)))
        finally:
            self.train(was_training)
        return "".join(vocab.idx_to_token[i] for i in ids)


class RNNLM(RNNLMScratch):
    """Language model of a recurrent layer and `nn.LazyLinear`, which infers its input width.

    Args:
        rnn: the layer, for example `d2l.LSTM`.
        vocab_size: size of the vocabulary.
        lr: learning rate.

    Examples:
        >>> import torch
        >>> from recurra import d2l
        >>> model = d2l.RNNLM(d2l.GRU(28, 16), vocab_size=28, lr=1)
        >>> model(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 28])
    """

    def init_params(self) -> None:
        """Create the output layer, whose parameters are created at the first call."""
        self.linear = nn.LazyLinear(self.vocab_size)

    def output_layer(self, rnn_outputs: Tensor) -> Tensor:
        """Return the logits (batch, steps, vocab_size) of the outputs of the layer."""
        logits: Tensor = self.linear(rnn_outputs)
        return logits.transpose(0, 1)
