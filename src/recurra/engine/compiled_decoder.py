"""Generate tokens by the compiled kernels: many steps in one call.

The kernels compute the same operations as `PlainDecoder` and `Sampler`, with the same random
numbers. A seed gives the same text unless the rounding of a logit changes the outcome of a draw.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recurra.engine.decoder import Decoder
from recurra.engine.sampling import Ids, Logits, Sampler
from recurra.errors import NonFiniteError
from recurra.kernels import library, structures
from recurra.kernels.buffers import PersistentBuffers
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.backends.native_passes import KeptSteps, LayerPasses, Trace
from recurra.recurrence.precision import product

MAX_FOLDED_VOCAB = 1024
"""Maximum vocabulary size for which the embedding is multiplied with the first layer's input weight
in advance."""
MIN_VALUES_PER_THREAD = 30_000
"""Minimum number of weights, times samples, per thread; with fewer, a thread waits longer at
barriers than it computes."""


class CompiledDecoder(Decoder):
    """Decoder that generates many tokens in one kernel call; see `Decoder`."""

    generates_ahead = True

    @classmethod
    def unsupported(cls, model: RecurrentLM) -> str | None:
        """Return why the kernels cannot generate with the model, or None if they can."""
        return model.compiled_unsupported()

    def __init__(self, model: RecurrentLM, num_samples: int = 1) -> None:
        super().__init__(model, num_samples)
        self._buffers = PersistentBuffers()
        self._layer_buffers = [PersistentBuffers() for _ in range(model.config.num_layers)]
        self._passes = [
            LayerPasses(model.config.cell, model.product_dtype, 1.0, buffers, buffers)
            for buffers in self._layer_buffers
        ]
        self._versions: list[tuple[int, int]] = []
        self._table: Tensor | None = None

    @torch.no_grad()
    def decode(self, tokens: Ids, num_steps: int, sampler: Sampler) -> Ids:
        """Generate tokens; see `Decoder.decode`."""
        ids = np.empty((num_steps + 1, len(tokens)), dtype=np.int64)
        ids[0] = tokens
        versions = [_version(parameter) for parameter in self.model.parameters()]
        packs, self._versions = versions != self._versions, versions
        if packs:
            self._table = self._make_table()
        uniforms = None if sampler.is_greedy else sampler.uniforms(num_steps)
        seen = None if sampler.seen is None else sampler.seen.copy()
        num_done, layers = self._generate(ids, sampler, uniforms, packs)
        if num_done == 0:
            raise NonFiniteError("a logit is NaN or infinite; the model's weights are damaged")
        if num_done < num_steps:
            # Some samples have gone on, and only their last state is kept: repeat the valid steps.
            if sampler.seen is not None and seen is not None:
                sampler.seen[...] = seen
            ids = ids[: num_done + 1]
            _, layers = self._generate(ids, sampler, uniforms, packs=False)
        place = num_done % 2  # of the last state, see `KeptSteps.LAST_STATE`
        hidden = [layer.trace.hidden[place] for layer in layers]
        cells = [layer.trace.cells[place] for layer in layers if layer.trace.cells is not None]
        self.state = tuple(torch.stack(parts) for parts in (hidden, cells) if parts)
        return ids[1 : num_done + 1]

    def _generate(
        self, ids: Ids, sampler: Sampler, uniforms: Logits | None, packs: bool
    ) -> tuple[int, list[_DescribedLayer]]:
        """Write the ids after the first ones, and return the number of valid steps."""
        layers = [self._describe_layer(index, ids) for index in range(len(self._passes))]
        banned = np.array(sampler.banned, dtype=np.int64)
        generation = self._describe(ids, layers, sampler, uniforms, banned)
        generation.packs = packs
        return library.load().recurra_generate(byref(generation)), layers

    def _make_table(self) -> Tensor | None:
        """Return the first layer's input projection of every token, (V, G*H).

        None if the embedding has more than `MAX_FOLDED_VOCAB` rows.
        """
        model = self.model
        first = model.layers()[0]
        if model.config.embedding_size:
            if len(model.embedding) > MAX_FOLDED_VOCAB:
                return None
            first = first._replace(
                weight_ih=product(first.weight_ih, model.embedding, model.product_dtype)
            )
        return self._passes[0].table(first)

    def _describe_layer(self, index: int, ids: Ids) -> _DescribedLayer:
        parameters, passes = self.model.layers()[index], self._passes[index]
        steps, samples = len(ids) - 1, ids.shape[1]
        state = tuple(part[index] for part in self.state)
        layer, trace = passes.prepare(steps, samples, state, parameters, KeptSteps.LAST_STATE)
        if index == 0 and self._table is not None:
            layer.ids = ids.ctypes.data
            layer.point(projected=self._table)
            return _DescribedLayer(layer, trace, None, None, None, None)
        weight = parameters.weight_ih
        gates = len(weight) // layer.units
        like, buffers = self.model.head_bias, self._layer_buffers[index]
        numbers = library.load().recurra_packed_numbers(gates, layer.units, weight.shape[1])
        packed = buffers.take("packed input weight", numbers, like=like)
        projected = buffers.take("projected", 2, samples, len(weight), like=like)
        layer.point(projected=projected)
        bias = passes.foldable_bias(parameters)
        return _DescribedLayer(layer, trace, weight, bias, packed, projected)

    def _describe(
        self,
        ids: Ids,
        layers: list[_DescribedLayer],
        sampler: Sampler,
        uniforms: Logits | None,
        banned: Ids,
    ) -> structures.Description:
        """Return the kernel's argument structure.

        The structure holds addresses only: the caller must keep the other arguments alive.
        """
        model, config = self.model, sampler.config
        samples = ids.shape[1]
        vocabulary, units = model.output_weight.shape
        width = model.config.embedding_size
        like, kernels = model.head_bias, library.load()
        numbers = kernels.recurra_packed_numbers(1, vocabulary, units)
        packed = self._buffers.take("packed head", numbers, like=like)
        numbers = kernels.recurra_logit_numbers(vocabulary)
        logits = self._buffers.take("logits", samples, numbers, like=like)
        embedded = self._buffers.take("embedded", samples, width + width % 2, like=like)
        generation = structures.Generation(
            threads=self._threads(samples),
            num_layers=len(layers),
            greedy=sampler.is_greedy,
            layers=(structures.Layer * len(layers))(*(layer.description for layer in layers)),
            weights_ih=_pointers([layer.weight_ih for layer in layers]),
            biases=_pointers([layer.bias for layer in layers]),
            packed_ih=_pointers([layer.packed for layer in layers]),
            projected=_pointers([layer.projected for layer in layers]),
            embedding_size=width,
            vocabulary=vocabulary,
            ids=ids.ctypes.data,
            uniforms=None if uniforms is None else uniforms.ctypes.data,
            seen=None if sampler.seen is None else sampler.seen.ctypes.data,
            banned=banned.ctypes.data,
            num_banned=len(banned),
            top_k=min(config.top_k or vocabulary, vocabulary),
            temperature=config.temperature,
            top_p=1.0 if config.top_p is None else config.top_p,
            min_p=config.min_p or 0.0,
            repetition_penalty=config.repetition_penalty,
        )
        generation.point(
            embedding=model.embedding if width else None,
            embedding_operand=embedded,
            head_weight=model.output_weight,
            head_bias=model.head_bias,
            packed_head=packed,
            logits=logits,
        )
        return generation

    def _threads(self, samples: int) -> int:
        """Return the number of threads, such that each has enough work between two barriers."""
        numbers = self.model.num_parameters * samples
        return max(1, min(library.threads(), numbers // MIN_VALUES_PER_THREAD))


def _version(parameter: Tensor) -> tuple[int, int]:
    """Return a key that changes when the values change; inference tensors never change."""
    return 0 if parameter.is_inference() else parameter._version, parameter.data_ptr()


class _DescribedLayer(NamedTuple):
    """The kernel's description of a layer, with the tensors that it points to.

    Attributes:
        description: the structure `Layer`.
        trace: the outputs of the layer.
        weight_ih, bias, packed, projected: the input weight, the bias, the packed input weight and
            the projected inputs; None for a layer that reads a table by token id.
    """

    description: structures.Description
    trace: Trace
    weight_ih: Tensor | None
    bias: Tensor | None
    packed: Tensor | None
    projected: Tensor | None


def _pointers(tensors: list[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*map(library.pointer, tensors))
