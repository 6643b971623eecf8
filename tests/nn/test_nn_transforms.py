"""recurra.nn in the transforms of torch.func, forward mode, checkpoints and batched gradients."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import recurra.nn
from nn.pairs import (
    BATCH,
    FLOAT32_TOLERANCE,
    HIDDEN,
    INPUT,
    KERNELS,
    NAMES,
    STEPS,
    assert_close,
    assert_same,
    auto_pair,
    every_cell,
    inputs_of,
    leaf,
    loss,
    loss_gradients,
    make_pair,
    outcome,
    tensors,
    weights_of,
)
from nn.test_nn_torch_suite import torch_common_modules
from recurra.config import ModelConfig
from recurra.errors import ConfigError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import LayerParameters
from recurra.recurrence.layer import run

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@every_cell
def test_func_grad_equals_backward_of_torch(name, options):
    ours, theirs = auto_pair(name, **options)
    x = inputs_of()
    found = grad(partial(loss, ours))(weights_of(ours), x)
    for key, expected in loss_gradients(theirs, x).items():
        assert_close(found[key], expected)


def test_func_grad_of_smallest_layer_equals_backward_of_torch():
    layer = recurra.nn.RNN(5, 7)
    x = torch.randn(3, 2, 5)
    found = grad(lambda p: functional_call(layer, p, (x,))[0].sum())(dict(layer.named_parameters()))
    layer(x)[0].sum().backward()
    for key, p in layer.named_parameters():
        assert_close(found[key], p.grad)


@every_cell
@pytest.mark.parametrize("transform", [jacrev, jacfwd])
def test_func_jacobian_equals_rows_of_torch(transform, name, options):
    ours, theirs = auto_pair(name, **options)
    x = inputs_of()
    found = transform(lambda x: ours(x)[0])(x)
    rows = []
    given = leaf(x)
    outputs = theirs(given)[0]
    for entry in outputs.flatten():
        rows.append(torch.autograd.grad(entry, given, retain_graph=True)[0])
    assert_close(found, torch.stack(rows).view(*outputs.shape, *x.shape))


@every_cell
def test_vmap_of_grad_equals_gradient_of_each_sample(name, options):
    ours, theirs = auto_pair(name, **options)
    x = inputs_of()
    found = vmap(grad(partial(loss, ours)), in_dims=(None, 1))(weights_of(ours), x)
    for index in range(BATCH):
        for key, expected in loss_gradients(theirs, x[:, index]).items():
            assert_close(found[key][index], expected)


@every_cell
def test_vmap_over_weights_equals_each_member_of_ensemble(name, options):
    ours, theirs = auto_pair(name, **options)
    x, weights = inputs_of(), weights_of(ours)
    stacked = {key: torch.stack([w, 0.5 * w]) for key, w in weights.items()}
    found = vmap(lambda w: functional_call(ours, w, (x,))[0])(stacked)
    for index, factor in enumerate((1.0, 0.5)):
        scaled = {key: factor * w for key, w in weights.items()}
        assert_close(found[index], functional_call(theirs, scaled, (x,))[0])


@every_cell
def test_forward_mode_equals_reverse_mode_of_torch(name, options):
    ours, theirs = auto_pair(name, **options)
    x, tangent = inputs_of(), inputs_of()
    given = leaf(x)
    outputs = theirs(given)[0]
    weights = torch.randn_like(outputs)
    (pullback,) = torch.autograd.grad((outputs * weights).sum(), given)
    expected = (pullback * tangent).sum()
    found = jvp(lambda x: ours(x)[0], (x,), (tangent,))[1]
    assert_close((found * weights).sum(), expected)
    with forward_ad.dual_level():
        dual = ours(forward_ad.make_dual(x, tangent))[0]
        assert_close((forward_ad.unpack_dual(dual).tangent * weights).sum(), expected)
    backward = vjp(lambda x: ours(x)[0], x)[1]
    assert_close(backward(weights)[0], pullback)


@every_cell
def test_hessian_equals_second_derivatives_of_reference(name, options):
    ours, _ = auto_pair(name, **options)
    plain, _ = make_pair(name, INPUT, HIDDEN, 2, bidirectional=True, backend="reference", **options)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 1, INPUT)
    found = hessian(lambda x: ours(x)[0].square().sum())(x)
    expected = torch.autograd.functional.hessian(lambda x: plain(x)[0].square().sum(), x.double())
    assert_close(found, expected.float())


class Checkpointed(torch.nn.Module):
    """A module that recomputes another one in the backward pass."""

    def __init__(self, inner, is_reentrant=False):
        super().__init__()
        self.inner = inner
        self.is_reentrant = is_reentrant

    def forward(self, x, hx=None):
        # Reentrant checkpoints support flat results only.
        return checkpoint(self._call, x, hx, use_reentrant=self.is_reentrant)

    def _call(self, x, hx):
        return tuple(tensors(self.inner(x, hx)))


def outcome_of_inner(module, inputs, hx):
    return {k.removeprefix("inner."): v for k, v in outcome(module, inputs, hx).items()}


@every_cell
@pytest.mark.parametrize("is_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_checkpoint_equals_torch(is_reentrant, name, options):
    ours, theirs = auto_pair(name, **options)
    x = inputs_of()
    actual = outcome_of_inner(Checkpointed(ours, is_reentrant), x, None)
    assert_same(actual, outcome(theirs, x, None), FLOAT32_TOLERANCE)


def torch_samples(name):
    common = torch_common_modules()
    (info,) = (i for i in common.module_db if i.module_cls is getattr(torch.nn, name))
    for training in (True, False):
        for sample in info.module_inputs_func(
            info, "cpu", torch.float32, requires_grad=True, training=training
        ):
            settings = {"dtype": torch.float32, **sample.constructor_input.kwargs}
            ours, theirs = make_pair(
                name, *sample.constructor_input.args, backend="auto", **settings
            )
            yield ours.train(training), theirs.train(training), sample.forward_input.args


@pytest.mark.parametrize("name", NAMES)
def test_module_under_vmap_equals_torch_on_inputs_of_torch_test_suite(name):
    count = 0
    for ours, theirs, arguments in torch_samples(name):
        given = [leaf(a) for a in arguments]
        pairs = torch.utils._pytree.tree_map(lambda t: torch.stack([t, 0.5 * t]).detach(), given)
        found = tensors(vmap(lambda *a, m=ours: m(*a))(*pairs))
        for index in range(2):
            one = torch.utils._pytree.tree_map(lambda t, i=index: t[i], pairs)
            for actual, expected in zip(found, tensors(theirs(*one)), strict=True):
                assert_close(actual[index], expected)
        count += 1
    assert count >= 32


@pytest.mark.parametrize("name", NAMES)
def test_module_under_checkpoint_equals_torch_on_inputs_of_torch_test_suite(name):
    count = 0
    for ours, theirs, arguments in torch_samples(name):
        inputs, hx = (*arguments, None)[:2]
        expected = outcome(theirs, inputs, hx)
        actual = outcome_of_inner(Checkpointed(ours), inputs, hx)
        assert_same(actual, expected, FLOAT32_TOLERANCE)
        count += 1
    assert count >= 32


@every_cell
def test_batched_gradients_equal_torch(name, options):
    ours, theirs = auto_pair(name, **options)
    results = []
    x = inputs_of()
    for module in (ours, theirs):
        given = leaf(x)
        outputs = module(given)[0]
        rows = torch.eye(outputs.numel()).view(-1, *outputs.shape)
        wanted = [given, *module.parameters()]
        if module is ours:
            found = torch.autograd.grad(outputs, wanted, rows, is_grads_batched=True)
        else:
            each = [torch.autograd.grad(outputs, wanted, r, retain_graph=True) for r in rows]
            found = [torch.stack(parts) for parts in zip(*each, strict=True)]
        results.append(found)
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["bptt", *KERNELS])
def test_chosen_backend_is_replaced_inside_transform(backend):
    ours, theirs = make_pair("GRU", INPUT, HIDDEN, backend=backend, dtype=torch.float32)
    x = inputs_of()
    found = grad(partial(loss, ours))(weights_of(ours), x)
    for key, expected in loss_gradients(theirs, x).items():
        assert_close(found[key], expected)


@pytest.mark.parametrize("backend", ["bptt", *KERNELS])
def test_chosen_backend_of_layer_function_inside_transform_raises_config_error(backend):
    weights = LayerParameters(torch.randn(HIDDEN, INPUT), torch.randn(HIDDEN, HIDDEN))
    with pytest.raises(ConfigError, match="use auto, reference"):
        grad(lambda x: run("rnn", x, None, weights, backend)[0].sum())(inputs_of())


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "mingru"])
def test_language_model_under_vmap_of_grad_equals_each_sample(cell):
    config = ModelConfig(cell=cell, hidden_size=HIDDEN, embedding_size=0, vocab_size=6)
    model = RecurrentLM(config)
    ids = torch.randint(6, (STEPS, BATCH))

    def loss_of(weights, sample):
        return functional_call(model, weights, (sample.unsqueeze(1),))[0].square().sum()

    found = vmap(grad(loss_of), in_dims=(None, 1))(weights_of(model), ids)
    for index in range(BATCH):
        model.zero_grad()
        model(ids[:, index : index + 1])[0].square().sum().backward()
        for key, p in model.named_parameters():
            assert_close(found[key][index], p.grad)
