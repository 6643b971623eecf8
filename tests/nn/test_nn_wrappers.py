"""recurra.nn with the gradient scaler, hooks, parametrizations, pruning and DataParallel."""

import torch
from torch.nn.utils import parametrize, prune

from nn.pairs import (
    FLOAT32_TOLERANCE,
    assert_close,
    assert_same,
    auto_pair,
    every_cell,
    inputs_of,
    leaf,
    loss_gradients,
    outcome,
    tensors,
)


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
        assert_same(outcome(ours, x, None), outcome(theirs, x, None), FLOAT32_TOLERANCE)
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
