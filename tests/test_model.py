"""`RecurrentLM`: values against torch.nn, states, dropout, initialization and options."""

import math

import pytest
import torch
from torch import nn

from recurra.config import ModelConfig
from recurra.errors import ConfigError
from recurra.model import RecurrentLM
from recurra.recurrence.dropout import Rows

CELLS = ["rnn", "rnn-relu", "gru", "lstm", "none"]


BLOCKS = {"residual": True, "num_layers": 2, "embedding_size": 12}


def make(device="cpu", **options):
    torch.manual_seed(0)
    settings = {"cell": "lstm", "hidden_size": 12, "vocab_size": 9, "embedding_size": 0} | options
    return RecurrentLM(ModelConfig(**settings)).to(device)


@pytest.mark.parametrize("embedding_size", [0, 7])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_recurrent_lm_equals_torch_model_of_same_weights(cell, embedding_size):
    model = make(cell=cell, num_layers=2, embedding_size=embedding_size)
    kind = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell]
    layer = kind(embedding_size or 9, 12, num_layers=2)
    layer.load_state_dict({n: p for n, p in model.state_dict().items() if n in layer.state_dict()})
    ids, targets = torch.randint(9, (3, 5)), torch.randint(9, (3, 5))
    if embedding_size:
        inputs = model.embedding[ids.t()]
    else:
        inputs = nn.functional.one_hot(ids.t(), 9).float()
    outputs, _ = layer(inputs)
    expected = nn.functional.linear(outputs, model.head_weight, model.head_bias)
    logits, state = model(ids)
    torch.testing.assert_close(logits, expected.transpose(0, 1), rtol=1e-5, atol=1e-6)
    assert len(state) == (2 if cell == "lstm" else 1)
    loss, _ = model.loss(ids, targets)
    flat = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, flat)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_lm_pieces_equal_whole_sequence(cell, device):
    model = make(device, cell=cell, num_layers=2).double()
    ids = torch.randint(9, (2, 11), device=device)
    whole, _ = model(ids)
    state, pieces = None, []
    for piece in ids.split([1, 3, 7], dim=1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", ["reference", "bptt", "library"])
def test_recurrent_lm_backends_give_equal_loss_and_gradients(cell, backend, device):
    grads = []
    for name in (backend, "reference"):
        model = make(device, cell=cell, backend=name, embedding_size=12, tie_weights=True).double()
        ids = torch.arange(12, device=device).reshape(2, 6) % 9
        loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        grads.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_zero_state_equals_no_state(cell):
    model = make(cell=cell)
    ids = torch.randint(9, (4, 3))
    assert torch.equal(model(ids)[0], model(ids, model.zero_state(4))[0])


def test_loss_of_untrained_model_is_log_of_vocab_size():
    model = make(init="normal", vocab_size=28)
    ids = torch.randint(28, (8, 20))
    loss, _ = model.loss(ids[:, :-1], ids[:, 1:])
    assert math.exp(float(loss.detach())) == pytest.approx(28, rel=0.01)


def test_initial_logits_equal_output_bias():
    model = make()
    assert torch.equal(model.initial_logits(3), model.head_bias.expand(3, -1))


def test_normal_init_has_std_0_01_and_zero_biases():
    model = make(init="normal", hidden_size=200, vocab_size=50)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert float(parameter.detach().abs().max()) == 0, name
        else:
            assert float(parameter.detach().std()) == pytest.approx(0.01, rel=0.1), name


def test_orthogonal_init_is_orthogonal_per_gate():
    model = make(init="orthogonal")
    for gate in model.weight_hh_l0.split(12):
        torch.testing.assert_close(gate @ gate.t(), torch.eye(12), rtol=1e-5, atol=1e-5)


def test_forget_bias_changes_forget_gate_only():
    plain, biased = make(init="normal"), make(init="normal", forget_bias=1.0)
    difference = biased.bias_hh_l0 - plain.bias_hh_l0
    assert difference.tolist() == [0.0] * 12 + [1.0] * 12 + [0.0] * 24


def test_dropout_applies_between_layers_in_training_only():
    model = make(num_layers=2, dropout=0.5)
    ids = torch.randint(9, (2, 6))
    assert not torch.equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert torch.equal(model(ids)[0], model(ids)[0])
    single = make(num_layers=1, dropout=0.5)
    assert torch.equal(single(ids)[0], single(ids)[0])


def test_tie_weights_uses_embedding_as_output_weight():
    model = make(embedding_size=12, tie_weights=True)
    assert "head_weight" not in model.state_dict()
    with pytest.raises(ConfigError, match="embedding_size"):
        make(embedding_size=5, tie_weights=True)


@pytest.mark.parametrize("options", [{}, BLOCKS], ids=["plain", "blocks"])
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_loss_in_every_precision_is_close_to_fp32_and_weights_stay_fp32(precision, options, device):
    ids = torch.randint(9, (4, 8), device=device)
    exact, rounded = make(device, **options), make(device, precision=precision, **options)
    loss, _ = exact.loss(ids[:, :-1], ids[:, 1:])
    near, state = rounded.loss(ids[:, :-1], ids[:, 1:])
    near.backward()
    assert float((near - loss).detach().abs()) < 0.02
    assert all(p.grad.dtype == torch.float32 for p in rounded.parameters())
    assert all(s.dtype == torch.float32 for s in state)


def test_num_parameters_counts_all_weights_of_gru():
    model = make(cell="gru", hidden_size=256, vocab_size=65)
    assert model.num_parameters == 3 * 256 * (65 + 256 + 2) + 65 * 257


def test_output_dropout_leaves_state_unchanged():
    model, ids = make(output_dropout=0.5), torch.randint(9, (2, 6))
    hidden, state = model.hidden(ids)
    assert 0.2 < float((hidden == 0).float().mean()) < 0.8
    assert torch.equal(state[0], model.eval().hidden(ids)[1][0])
    assert not (model.hidden(ids)[0] == 0).any()


def test_locked_dropout_uses_one_mask_for_all_steps():
    model = make(num_layers=2, dropout=0.5, output_dropout=0.5, locked_dropout=True)
    hidden, _ = model.hidden(torch.randint(9, (3, 20)))
    dropped = hidden == 0
    assert torch.equal(dropped[0].expand_as(dropped), dropped)
    assert dropped[0].any()
    assert not dropped[0].all()


OTHER_CELLS = ["lstm-ln", "mogrifier", "mingru", "minlstm", "sru", "rglru"]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("cell", [*CELLS, *OTHER_CELLS])
def test_recurrent_lm_of_every_cell_equals_reference_backend(cell, residual):
    model = make(cell=cell, num_layers=2, embedding_size=12, residual=residual).double()
    ids, targets = torch.randint(9, (2, 11)), torch.randint(9, (2, 11))
    whole, last = model(ids)
    first, state = model(ids[:, :4])
    second, end = model(ids[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(end, last, rtol=1e-9, atol=1e-11)
    loss, _ = model.loss(ids, targets)
    torch.autograd.backward(loss)
    reference = make(
        cell=cell, num_layers=2, embedding_size=12, residual=residual, backend="reference"
    ).double()
    torch.autograd.backward(reference.loss(ids, targets)[0])
    for name, parameter in model.named_parameters():
        expected = reference.get_parameter(name).grad
        assert expected is not None, name
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-7, atol=1e-10)


def test_residual_block_equals_griffin_equations():
    model = make(cell="mingru", num_layers=1, embedding_size=12, residual=True).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    ids = torch.randint(9, (2, 5))
    x = model.embedding[ids.t()]

    def rms(x, gain):
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt() * gain

    u = rms(x, model.norm_l0)
    z, n = (u @ model.weight_ih_l0.t() + model.bias_ih_l0).chunk(2, dim=-1)
    z, h, read = z.sigmoid(), torch.zeros(2, 12, dtype=torch.float64), []
    for z_t, n_t in zip(z, n, strict=True):
        h = (1 - z_t) * h + z_t * n_t
        read.append(h)
    gelu = nn.functional.gelu
    x = x + (torch.stack(read) * gelu(u @ model.gate_l0.t())) @ model.out_l0.t()
    v = rms(x, model.feed_norm_l0)
    a, b = (v @ model.feed_in_l0.t()).chunk(2, dim=-1)
    x = x + (gelu(a) * b) @ model.feed_out_l0.t()
    expected = rms(x, model.final_norm) @ model.head_weight.t() + model.head_bias
    torch.testing.assert_close(model(ids)[0], expected.transpose(0, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "lstm-ln"])
def test_zoneout_keeps_units_in_training_and_averages_in_eval(cell):
    plain, model = make(cell=cell), make(cell=cell, zoneout=0.25)
    assert model.backend == "reference"
    ids = torch.randint(9, (3, 1))
    before = tuple(torch.randn_like(part) for part in plain.zero_state(3))
    _, after = plain.eval()(ids, before)
    _, mean = model.eval()(ids, before)
    for b, a, m in zip(before, after, mean, strict=True):
        torch.testing.assert_close(m, 0.25 * b + 0.75 * a)
    model.train()
    kept, times = 0, 400
    for _ in range(times):
        _, drawn = model(ids, before)
        for b, a, d in zip(before, after, drawn, strict=True):
            stays = torch.isclose(d, b)
            assert torch.isclose(torch.where(stays, b, a), d).all()
            kept += float(stays.float().mean()) / len(before)
    assert kept / times == pytest.approx(0.25, abs=0.02)


def test_zoneout_of_rows_equals_zoneout_of_whole_batch():
    model = make(zoneout=0.5)
    ids = torch.randint(9, (4, 6))
    torch.manual_seed(3)
    whole, _ = model.hidden(ids)
    for rows in (slice(0, 1), slice(1, 4)):
        torch.manual_seed(3)
        part, _ = model.hidden(ids[rows], rows=Rows(rows, 4))
        torch.testing.assert_close(part, whole[:, rows])


def test_chrono_init_spreads_forget_biases_up_to_length():
    model = make(hidden_size=300, chrono=50)
    forget = (model.bias_ih_l0 + model.bias_hh_l0).detach().split(300)
    time_constants = forget[1].exp()
    assert 1.0 <= float(time_constants.min()) < 2.0
    assert 47.0 < float(time_constants.max()) <= 49.0
    assert torch.equal(forget[0], -forget[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cell": "mogrifier", "embedding_size": 0}, "embedding_size"),
        ({"residual": True, "embedding_size": 5}, "residual .*5"),
        ({"cell": "sru", "zoneout": 0.1}, "zoneout"),
        ({"zoneout": 0.1, "backend": "native"}, "reference backend"),
        ({"zoneout": 1.0}, "zoneout"),
        ({"chrono": 2}, "chrono"),
        ({"chrono": -1}, "chrono"),
        ({"chrono": 9, "forget_bias": 1.0}, "forget.bias"),
        ({"cell": "gru", "chrono": 9}, "chrono"),
    ],
)
def test_model_config_conflicting_options_raise(options, words):
    with pytest.raises(ConfigError, match=words):
        make(**options)
