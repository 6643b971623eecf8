"""Property tests of vocabularies and token files: arbitrary text and bytes round-trip."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recurra.config import TextConfig
from recurra.data import provisional
from recurra.data.token_file import TokenFile, build_token_file
from recurra.errors import SourceError
from recurra.text import sources
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.corpus import prepare_text
from recurra.text.vocabulary import CharVocabulary, Vocabulary, WordVocabulary

pytest.importorskip("tokenizers", reason="the bpe extra is not installed")

from recurra.text.bpe import BpeVocabulary

KINDS = ["char", "word", "byte", "bpe"]
BYTES = ByteVocabulary()
BPE = BpeVocabulary.train(["the cat — 你好，你好！ don't שלום 🙂🙂\r\n\r\n" * 5], vocab_size=300)

# Strings that text programs often mishandle: control characters, all line ends, byte order marks,
# noncharacters, combining marks, joined emoji, right-to-left text, letters whose lower case has
# another length, non-decimal digits, and the name of the special token.
AWKWARD = [
    "\0", "\x1b", "\x1c", "\x7f", "\x85", "\u2028", "\r\n", "\r", "\n", " ", "  ", "\u00a0", "\t",
    "\ufeff", "\ufffe", "\uffff", "\ufffd", "\U0010ffff", "\U000e0001", "e\u0301", "\u0301",
    "\u200d", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "שלום", "مرحبا",
    "\u202e", "İ", "ß", "ﬁ", "中", "가", "½", "٣", "don't", "'", "’", "_", "<unk>", "a", " b",
]  # fmt: skip
CHARACTERS = st.characters(exclude_categories=["Cs"])
ANY_TEXT = st.lists(
    st.one_of(st.sampled_from(AWKWARD), st.text(CHARACTERS, max_size=3)), max_size=20
).map("".join)
SURROGATE_TEXT = st.text(
    st.one_of(st.characters(categories=["Cs"]), st.sampled_from("a🙂")), min_size=1
)
MANY_EXAMPLES = settings(deadline=None, max_examples=150)


def vocabulary_of(kind: str, text: str) -> Vocabulary:
    if kind in ("byte", "bpe"):
        return BYTES if kind == "byte" else BPE
    # A vocabulary cannot be built from an empty text.
    return (CharVocabulary if kind == "char" else WordVocabulary).from_text(text or "x")


def decode_incrementally(vocabulary: Vocabulary, ids: list[int]) -> str:
    decoder = vocabulary.decoder()
    return "".join([decoder.push(token_id) for token_id in ids]) + decoder.finish()


@pytest.mark.parametrize("kind", KINDS)
@MANY_EXAMPLES
@given(text=ANY_TEXT)
def test_vocabulary_any_text_round_trips(kind: str, text: str) -> None:
    vocabulary = vocabulary_of(kind, text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int64
    assert ((ids >= 0) & (ids < len(vocabulary))).all()
    assert vocabulary.decode(ids) == text
    assert decode_incrementally(vocabulary, ids.tolist()) == text
    lengths = vocabulary.byte_lengths(text)
    assert len(lengths) == len(ids)
    assert lengths.sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
@MANY_EXAMPLES
@given(text=SURROGATE_TEXT)
def test_vocabulary_lone_surrogate_round_trips_or_raises(kind: str, text: str) -> None:
    vocabulary = vocabulary_of(kind, text)
    has_surrogate = any("\ud800" <= character <= "\udfff" for character in text)
    if has_surrogate:
        with pytest.raises(SourceError, match="lone surrogate"):
            vocabulary.byte_lengths(text)
        if kind in ("byte", "bpe"):
            with pytest.raises(SourceError, match="lone surrogate"):
                vocabulary.encode(text)
            return
    assert vocabulary.decode(vocabulary.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
@MANY_EXAMPLES
@given(numbers=st.lists(st.integers(0, 2**16), max_size=30))
def test_decoder_any_ids_equal_vocabulary_decode(kind: str, numbers: list[int]) -> None:
    vocabulary = vocabulary_of(kind, "é\u0301 🙂 中\0\r\n\ufffd")
    ids = [number % len(vocabulary) for number in numbers]
    assert decode_incrementally(vocabulary, ids) == vocabulary.decode(ids)


@MANY_EXAMPLES
@given(st.binary())
def test_byte_vocabulary_any_bytes_round_trip(data: bytes) -> None:
    ids = BYTES.encode_bytes(data)
    assert BYTES.decode_bytes(ids) == data
    assert BYTES.decode_bytes(iter(ids.tolist())) == data


@pytest.mark.parametrize("outside", [-1, 256])
def test_decode_bytes_id_out_of_range_raises(outside: int) -> None:
    with pytest.raises(IndexError, match=f"id {outside} "):
        BYTES.decode_bytes([0, outside])


@pytest.fixture(params=[1, 5, 1 << 20])
def chunk_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the number of bytes and ids per chunk, so that chunk borders cut characters."""
    monkeypatch.setattr(sources, "CHUNK_BYTES", request.param)
    monkeypatch.setattr(provisional, "CHUNK_IDS", request.param)


def build_tokens(folder: Path, data: bytes, config: TextConfig) -> tuple[TokenFile, Vocabulary]:
    file, out = folder / "text", folder / "out"
    file.write_bytes(data)
    shutil.rmtree(out, ignore_errors=True)
    return build_token_file([file], config, out)


# The function-scoped fixtures are safe: each example replaces the output directory, and the chunk
# size is the same for all examples of a test.
FEW_EXAMPLES = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.usefixtures("chunk_size")
@FEW_EXAMPLES
@given(data=st.binary(min_size=3))
def test_build_token_file_bytes_equal_source_bytes(tmp_path: Path, data: bytes) -> None:
    tokens, vocabulary = build_tokens(tmp_path, data, TextConfig(tokens="byte"))
    assert tokens.path.read_bytes() == data
    assert vocabulary.decode(tokens.ids) == BYTES.decode(list(data))
    assert tokens.num_bytes == len(data)


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("newlines", ["keep", "unify"])
@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
@FEW_EXAMPLES
@given(text=ANY_TEXT)
def test_build_token_file_any_text_round_trips(
    tmp_path: Path, kind: str, newlines: str, text: str
) -> None:
    # The suffix makes every text long enough for a token file.
    text = f"{text}a.b"
    config = TextConfig(tokens=kind, newlines=newlines, val_fraction=0.0)
    tokens, vocabulary = build_tokens(tmp_path, text.encode(), config)
    expected = prepare_text(text.removeprefix("\ufeff"), config)
    assert vocabulary.decode(tokens.ids) == expected
    assert (tokens.num_chars, tokens.num_bytes) == (len(expected), len(expected.encode()))


@pytest.mark.usefixtures("chunk_size")
@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "shift_jis", "gb18030"])
@FEW_EXAMPLES
@given(text=ANY_TEXT)
def test_build_token_file_other_encodings_round_trip(
    tmp_path: Path, encoding: str, text: str
) -> None:
    text = f"{text}a.b".encode(encoding, "ignore").decode(encoding)
    config = TextConfig(encoding=encoding, newlines="keep", val_fraction=0.0)
    tokens, vocabulary = build_tokens(tmp_path, text.encode(encoding), config)
    assert vocabulary.decode(tokens.ids) == text.removeprefix("\ufeff")
