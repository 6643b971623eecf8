"""Compare products of AMX tiles, emulated, with other products: run by test_tiles.py."""

import os

import torch

from recurra.config import ModelConfig
from recurra.engine.compiled_gradients import CompiledGradients
from recurra.engine.sampling import GenerationConfig
from recurra.inference.generate import generate_ids
from recurra.kernels import library, matmul_results, matmul_selection
from recurra.kernels.matmul_trials import is_correct
from recurra.model.recurrent_lm import RecurrentLM
from recurra.runtime import cores
from support.layers import assert_same, make_layer, make_state, outcome

CELLS = ("rnn", "rnn-relu", "gru", "lstm")


def with_kind(kind, compute):
    """Return the result of a function with bf16 products of this kind."""
    os.environ["RECURRA_MATMUL"] = kind
    assert matmul_selection.matmul_kernels().bf16 == kind
    return compute()


def compare_products():
    tiles = matmul_results.KERNELS["tiles"]
    for depth in (1, 2, 31, 32, 33, 64, 95, 1030):
        rows = range(1, 41) if depth < 1000 else (1, 40)
        assert is_correct(tiles, [(n, depth, 33) for n in rows]), depth


def compare_layer(cell, units, rows):
    torch.manual_seed(0)
    layers = [make_layer(cell, width, units, torch.float32) for width in (7, units)]
    states = [make_state(cell, rows, layer) for layer in layers]
    state = tuple(torch.stack(s).detach().requires_grad_() for s in zip(*states, strict=True))
    inputs = torch.randn(3, rows, 7, requires_grad=True)

    def compute():
        return outcome(cell, inputs, state, layers, "native", precision="bf16")

    assert_same(with_kind("tiles", compute), with_kind("rounded", compute), 0.02)


def compare_model(cell):
    torch.manual_seed(0)
    config = ModelConfig(
        cell=cell, vocab_size=37, hidden_size=45, embedding_size=9, num_layers=2, precision="bf16"
    )
    ids = torch.randint(37, (19, 5))

    def step():
        torch.manual_seed(0)
        model = RecurrentLM(config)
        loss, _ = CompiledGradients(model).compute(ids, ids.roll(-1, 1))
        return [torch.tensor(loss), *(p.grad for p in model.parameters())]

    assert_same(with_kind("tiles", step), with_kind("rounded", step), 0.02)

    def text():
        torch.manual_seed(0)
        model = RecurrentLM(config).eval()
        options = GenerationConfig(max_new_tokens=12, temperature=0.0, seed=0)
        return list(generate_ids(model, [1, 2], options))

    assert with_kind("tiles", text) == with_kind("rounded", text)


def main():
    assert library.load().recurra_has_kind(matmul_results.KERNELS["tiles"])
    assert matmul_selection.matmul_kernels().wrong == []
    compare_products()
    for threads in (1, 3):
        with cores.use_threads(threads):
            for cell in CELLS:
                for units, rows in ((1, 3), (32, 16), (33, 1), (45, 17), (70, 40)):
                    compare_layer(cell, units, rows)
                compare_model(cell)
    print("equal")


if __name__ == "__main__":
    main()
