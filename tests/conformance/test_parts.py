"""Every row of the tables of cells, backends, optimizers and vocabularies passes its check."""

import pytest
import torch

from conformance import checks
from recurra.config.backends import BACKEND_MODULES
from recurra.config.optimizers import OPTIMIZERS
from recurra.kernels import library
from recurra.recurrence.cells import CELLS
from recurra.text.bpe import BpeVocabulary
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.vocabulary import CharVocabulary, WordVocabulary

TEXTS = ["", "a", "the cat sat on the mat, the end.", "naïve 中文 \U0001f600 the\n\ttab"]
COMPILED = ["gru", "lstm", "mingru", "minlstm", "none", "rglru", "rnn", "rnn-relu", "sru"]


@pytest.mark.parametrize("name", CELLS)
def test_cell_passes_the_checks(name):
    checks.check_cell(name)


@pytest.mark.parametrize("name", [name for name in BACKEND_MODULES if name != "native"])
def test_backend_equals_reference_for_all_cells(name):
    assert checks.check_backend(name, CELLS)


@pytest.mark.skipif(not library.is_available(), reason="no compiler for the kernels")
def test_native_backend_equals_reference_for_all_cells():
    assert checks.check_backend("native", CELLS, torch.float32) == COMPILED


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.01}], ids=["plain", "weight-decay"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_passes_the_checks(name, options):
    checks.check_optimizer(name, lr=0.02, **options)


def test_sgd_with_momentum_passes_the_checks():
    checks.check_optimizer("sgd", lr=0.02, momentum=0.5)


@pytest.mark.parametrize("kind", [CharVocabulary, WordVocabulary])
def test_symbol_vocabulary_passes_the_checks(kind):
    checks.check_vocabulary(kind.from_text("\n".join(TEXTS)), TEXTS)


def test_byte_vocabulary_passes_the_checks():
    checks.check_vocabulary(ByteVocabulary(), TEXTS)


def test_bpe_vocabulary_passes_the_checks():
    pytest.importorskip("tokenizers")
    checks.check_vocabulary(BpeVocabulary.train(["\n".join(TEXTS) * 5], vocab_size=280), TEXTS)
