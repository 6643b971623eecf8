"""The language model: embedding, recurrent layers, residual blocks and output layer."""

from recurra.model.recurrent_lm import RecurrentLM

__all__ = ["RecurrentLM"]
