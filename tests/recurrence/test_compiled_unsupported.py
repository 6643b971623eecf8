"""`RecurrentLM.compiled_unsupported`: the reason why a model cannot use the compiled kernels."""

import pytest
import torch

from recurra.config import ModelConfig
from recurra.kernels import library
from recurra.model import RecurrentLM


def make(**options):
    sizes = {"hidden_size": 8, "vocab_size": 11, "embedding_size": 8}
    return RecurrentLM(ModelConfig(**(sizes | options)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backend": "bptt"}, "the backend is set to bptt"),
        ({"zoneout": 0.1}, "zoneout needs the reference backend"),
        ({"cell": "mogrifier"}, "the compiled kernels have no mogrifier cell"),
        ({"cell": "mingru"}, "a cell whose gates read the state, not mingru"),
        ({"residual": True}, "the compiled kernels have no residual blocks"),
    ],
)
def test_compiled_unsupported_names_setting(options, reason):
    model = make(**options)
    assert reason in model.compiled_unsupported()


def test_compiled_unsupported_names_dtype():
    assert "fp32, not in torch.float64" in make().double().compiled_unsupported()


def test_compiled_unsupported_names_parameter():
    model = make()
    model.embedding.data = model.embedding.data.t().contiguous().t()
    assert model.compiled_unsupported() == "embedding is not contiguous"
    model.embedding.data = torch.zeros(11, 8, dtype=torch.float64)
    assert "embedding is torch.float64 on cpu" in model.compiled_unsupported()


def test_compiled_unsupported_explains_missing_kernels(monkeypatch):
    monkeypatch.setattr(library, "unavailable", lambda: "no C++ compiler is installed")
    assert make().compiled_unsupported() == "no C++ compiler is installed"


@pytest.mark.skipif(not library.is_available(), reason="no compiled kernels")
@pytest.mark.parametrize("cell", ["rnn", "rnn-relu", "gru", "lstm"])
def test_compiled_unsupported_is_none_for_compiled_cells(cell):
    assert make(cell=cell).compiled_unsupported() is None
