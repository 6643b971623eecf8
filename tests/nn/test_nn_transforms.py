"""recurra.nn inside the transforms and wrappers of torch, compared with torch.nn outside them."""

import copy
import warnings
from functools import partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import recurra.nn
from nn.pairs import (
    BATCH,
    CELL_IDS,
    CELLS,
    HIDDEN,
    INPUT,
    KERNELS,
    STEPS,
    assert_same,
    leaf,
    make_inputs,
    make_pair,
    make_state,
    outcome,
    tensors,
)
from nn.test_nn_torch_suite import NAMES, torch_common_modules
from recurra.config import ModelConfig
from recurra.errors import ConfigError
from recurra.model.recurrent_lm import RecurrentLM
from recurra.recurrence.cells import LayerParameters
from recurra.recurrence.layer import run

TOLERANCE = 2e-5
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
every_cell = pytest.mark.parametrize(("name", "options"), CELLS, ids=CELL_IDS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def auto_pair(name, **options):
    """Return a pair of two bidirectional fp32 layers, ours with the backend `auto`."""
    settings = {"num_layers": 2, "bidirectional": True} | options
    return make_pair(name, INPUT, HIDDEN, backend="auto", dtype=torch.float32, **settings)


def inputs_of(dtype=torch.float32):
    return torch.randn(STEPS, BATCH, INPUT, dtype=dtype)


def weights_of(module):
    return {key: p.detach() for key, p in module.named_parameters()}


def loss(module, weights, x):
    return functional_call(module, weights, (x,))[0].square().sum()


def loss_gradients(module, x):
    module.zero_grad()
    module(x)[0].square().sum().backward()
    return {key: p.grad.clone() for key, p in module.named_parameters()}


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    scale = max(1.0, float(expected.detach().abs().max()))
    assert float((actual - expected).detach().abs().max()) < TOLERANCE * scale


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
    assert_same(actual, outcome(theirs, x, None), TOLERANCE)


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
        assert_same(actual, expected, TOLERANCE)
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


@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_gives_dtypes_and_values_of_torch(name, weight_dtype, input_dtype, state_dtype):
    ours, theirs = make_pair(name, INPUT, HIDDEN, 2, backend="auto", dtype=weight_dtype)
    x, hx = inputs_of(input_dtype), None
    if state_dtype is not None:
        hx = torch.randn(2, BATCH, HIDDEN, dtype=state_dtype)
        hx = (hx, hx) if name == "LSTM" else hx
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = ours(x, hx), theirs(x, hx)
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        assert a.dtype == e.dtype
        assert float((a.float() - e.float()).detach().abs().max()) < 0.05


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_autocast_in_fp16_gives_dtypes_of_torch(name):
    ours, theirs = make_pair(name, INPUT, HIDDEN, backend="auto", dtype=torch.float32)
    x = inputs_of()
    with torch.autocast("cpu", dtype=torch.float16):
        actual, expected = ours(x), theirs(x)
    assert [t.dtype for t in tensors(actual)] == [t.dtype for t in tensors(expected)]


@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
@every_cell
def test_autocast_of_packed_sequence_gives_dtypes_of_torch(name, options, state_dtype):
    ours, theirs = auto_pair(name, **options)
    inputs, batch = make_inputs("unsorted", False, torch.float32)
    hx = make_state(ours, batch)
    if state_dtype is None:
        hx = None
    elif name == "LSTM":
        hx = tuple(h.to(state_dtype) for h in hx)
    else:
        hx = hx.to(state_dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = ours(inputs, hx), theirs(inputs, hx)
    assert [t.dtype for t in tensors(actual)] == [t.dtype for t in tensors(expected)]


@pytest.mark.filterwarnings("ignore")
@every_cell
def test_export_equals_torch_and_accepts_other_batch_sizes(name, options):
    ours, theirs = auto_pair(name, **options)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(ours, (inputs_of(),), dynamic_shapes=({1: batch},))
    x = torch.randn(STEPS, 2 * BATCH, INPUT)
    for actual, expected in zip(tensors(program.module()(x)), tensors(theirs(x)), strict=True):
        assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore")
@every_cell
def test_traced_module_equals_torch_with_other_lengths(name, options):
    ours, theirs = auto_pair(name, **options)
    traced = torch.jit.trace(ours, (inputs_of(),))
    x = torch.randn(2 * STEPS, BATCH + 1, INPUT)
    for actual, expected in zip(tensors(traced(x)), tensors(theirs(x)), strict=True):
        assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore")
def test_strict_export_equals_torch():
    ours, theirs = auto_pair("LSTM")
    x = inputs_of()
    with torch._dynamo.config.patch(allow_rnn=True):
        program = torch.export.export(ours, (x,), strict=True)
    assert_close(program.module()(x)[0], theirs(x)[0])


@pytest.mark.filterwarnings("ignore")
def test_compile_of_whole_graph_with_allow_rnn_equals_torch():
    ours, theirs = auto_pair("GRU")
    x = inputs_of()
    with torch._dynamo.config.patch(allow_rnn=True):
        found = torch.compile(ours, backend="eager", fullgraph=True)(x)[0]
    assert_close(found, theirs(x)[0])


def test_module_with_fake_and_meta_tensors_gives_shapes_of_torch():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for device in ("meta", "cpu"):
        with FakeTensorMode():
            layer = recurra.nn.GRU(INPUT, HIDDEN, device=device)
            outputs, _ = layer(torch.empty(STEPS, BATCH, INPUT, device=device))
        assert outputs.shape == (STEPS, BATCH, HIDDEN)
    layer = recurra.nn.GRU(INPUT, HIDDEN, device="meta")
    assert layer(torch.empty(STEPS, BATCH, INPUT, device="meta"))[0].is_meta


def test_module_with_tensor_subclass_equals_torch():
    class Tagged(torch.Tensor):
        pass

    ours, theirs = auto_pair("GRU")
    x = inputs_of()
    assert_close(ours(x.as_subclass(Tagged))[0].as_subclass(torch.Tensor), theirs(x)[0])


@every_cell
def test_grad_scaler_scales_and_restores_gradients(name, options):
    ours, theirs = auto_pair(name, **options)
    x = inputs_of()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.0)
    scaler.scale(ours(x)[0].square().sum()).backward()
    expected = loss_gradients(theirs, x)
    for key, p in ours.named_parameters():
        assert_close(p.grad / 64.0, expected[key])
    scaler.unscale_(optimizer)
    for key, p in ours.named_parameters():
        assert_close(p.grad, expected[key])
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 64.0


def recorded_hooks(module, x):
    """Return what module, full backward and parameter hooks receive."""
    seen = []
    module.register_forward_pre_hook(lambda m, a: seen.append(("pre", len(a))))
    module.register_forward_hook(lambda m, a, o: seen.append(("post", len(tensors(o)))))
    module.register_full_backward_hook(
        lambda m, g, o: seen.append(("backward", [t is not None for t in g], len(o)))
    )
    for key, p in module.named_parameters():
        p.register_hook(lambda g, key=key: seen.append((key, tuple(g.shape))))
    module(leaf(x))[0].sum().backward()
    return sorted(map(str, seen))


@every_cell
def test_hooks_receive_the_same_as_in_torch(name, options):
    ours, theirs = auto_pair(name, **options)
    x = inputs_of()
    assert recorded_hooks(ours, x) == recorded_hooks(theirs, x)


class Halved(torch.nn.Module):
    def forward(self, weight):
        return 0.5 * weight


@every_cell
def test_parametrized_and_pruned_modules_equal_torch(name, options):
    x = inputs_of()

    def parametrized(module):
        parametrize.register_parametrization(module, "weight_hh_l0", Halved())

    def pruned(module):
        prune.l1_unstructured(module, "weight_ih_l1", amount=0.5)

    for change in (parametrized, pruned):
        pair = auto_pair(name, **options)
        for module in pair:
            change(module)
        ours, theirs = pair
        assert_same(outcome(ours, x, None), outcome(theirs, x, None), TOLERANCE)
        with parametrize.cached():
            assert_close(ours(x)[0], theirs(x)[0])


@every_cell
def test_data_parallel_replica_equals_torch(name, options):
    ours, theirs = auto_pair(name, **options)
    replica = ours._replicate_for_data_parallel()
    for key, p in ours.named_parameters():
        # As torch.nn.parallel.replicate: the copies are tensors, not parameters.
        setattr(replica, key, p.detach().clone())
    x = inputs_of()
    assert_close(replica(x)[0], theirs(x)[0])
    assert_close(torch.nn.DataParallel(ours)(x)[0], theirs(x)[0])


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


def test_export_leaves_layer_usable():
    ours, theirs = auto_pair("GRU")
    before = copy.deepcopy(ours.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.export(ours, (inputs_of(),))
    x = inputs_of()
    assert_same(outcome(ours, x, None), outcome(theirs, x, None), TOLERANCE)
    for key, value in before.items():
        assert torch.equal(ours.state_dict()[key], value)
