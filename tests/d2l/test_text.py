"""`Vocab`, tokenization and corpora of `recurra.d2l`."""

import pytest
import torch

from recurra import d2l
from recurra.errors import ConfigError, CorpusError

TOKENS = [["b", "a", "b"], ["c", "b", "a"], ["d"]]


def test_vocab_sorts_by_count_then_first_occurrence():
    vocab = d2l.Vocab(TOKENS)
    assert vocab.idx_to_token == ["<unk>", "b", "a", "c", "d"]
    assert vocab.token_to_idx == {"<unk>": 0, "b": 1, "a": 2, "c": 3, "d": 4}
    assert vocab.token_freqs == [("b", 3), ("a", 2), ("c", 1), ("d", 1)]
    assert len(vocab) == 5


def test_vocab_applies_min_freq_and_reserved_tokens():
    vocab = d2l.Vocab(["x", "y", "x", "z"], min_freq=2, reserved_tokens=["<pad>", "<bos>"])
    assert vocab.idx_to_token == ["<unk>", "<pad>", "<bos>", "x"]
    assert d2l.Vocab(["<pad>", "x"], reserved_tokens=["<pad>"]).idx_to_token == [
        "<unk>",
        "<pad>",
        "x",
    ]
    assert d2l.Vocab().idx_to_token == ["<unk>"]


def test_vocab_maps_tokens_and_ids_and_unknown_to_zero():
    vocab = d2l.Vocab(TOKENS)
    assert vocab["a"] == 2
    assert vocab["?"] == vocab.unk == 0
    assert vocab[["a", "?", "b"]] == [2, 0, 1]
    assert vocab[[["a"], ("b", "c")]] == [[2], [1, 3]]
    assert vocab.to_tokens(3) == "c"
    assert vocab.to_tokens([1]) == ["b"]
    assert vocab.to_tokens(torch.tensor([4, 0])) == ["d", "<unk>"]
    assert vocab.to_tokens(torch.tensor(2)) == "a"


def test_tokenize_splits_words_or_characters():
    assert d2l.tokenize(["a cat", ""]) == [["a", "cat"], []]
    assert d2l.tokenize(["a c"], "char") == [["a", " ", "c"]]
    with pytest.raises(ConfigError, match="'syllable'"):
        d2l.tokenize(["a"], "syllable")


def test_count_corpus_accepts_flat_and_nested_lists():
    assert d2l.count_corpus(["a", "b", "a"]) == {"a": 2, "b": 1}
    assert d2l.count_corpus(TOKENS) == {"a": 2, "b": 3, "c": 1, "d": 1}
    assert d2l.count_corpus([]) == {}


@pytest.mark.usefixtures("small_corpora")
def test_read_time_machine_keeps_lowercase_letters_only():
    lines = d2l.read_time_machine()
    assert lines[:7] == [
        "the kettle no",
        "",
        "sang to the cat",
        "the cat sang back and rabbit heard it",
        "",
        "so the kettle sang again and the cat slept",
        "the kettle no",
    ]


@pytest.mark.usefixtures("small_corpora")
def test_load_corpus_time_machine_max_tokens_keeps_vocab():
    corpus, vocab = d2l.load_corpus_time_machine()
    first_ids, same_vocab = d2l.load_corpus_time_machine(5)
    assert first_ids == corpus[:5]
    assert same_vocab.idx_to_token == vocab.idx_to_token
    # Lines are joined without a separator.
    assert "".join(vocab.to_tokens(corpus[:30])) == "the kettle nosang to the catth"
    assert vocab.token_freqs[0] == (" ", 20 * (2 + 3 + 7 + 8))


@pytest.mark.usefixtures("small_corpora")
def test_load_data_jay_lyrics_replaces_newlines_by_spaces():
    corpus, char_to_idx, idx_to_char, vocab_size = d2l.load_data_jay_lyrics()
    assert "".join(idx_to_char[i] for i in corpus[:18]) == "雨落在屋顶 我听见雨  雨听见我 雨"
    assert vocab_size == len(idx_to_char) == len(char_to_idx) == len(set("雨落在屋顶我听见 "))
    assert [char_to_idx[char] for char in idx_to_char] == list(range(vocab_size))


def test_download_finds_names_of_the_book(small_corpora):
    d2l.DATA_HUB["time_machine"] = (d2l.DATA_URL + "timemachine.txt", "0")
    assert d2l.download("time_machine") == str(small_corpora / "time_machine.txt")
    with pytest.raises(CorpusError):
        d2l.download("kaggle_house_train")


@pytest.mark.usefixtures("time_machine")
def test_load_corpus_time_machine_has_28_characters():
    corpus, vocab = d2l.load_corpus_time_machine()
    assert (len(corpus), len(vocab)) == (170580, 28)
    train_iter, vocab = d2l.load_data_time_machine(32, 35)
    assert (len(train_iter.corpus), len(vocab)) == (10000, 28)
    assert train_iter.corpus == corpus[:10000]
    assert sum(1 for _ in train_iter) == 8


@pytest.mark.usefixtures("lyrics")
def test_load_data_jay_lyrics_has_1027_characters():
    corpus, _, idx_to_char, vocab_size = d2l.load_data_jay_lyrics()
    assert (len(corpus), len(set(idx_to_char)), vocab_size) == (10000, 1027, 1027)
    assert sum(1 for _ in d2l.data_iter_random(corpus, 32, 35)) == 8
    assert sum(1 for _ in d2l.data_iter_consecutive(corpus, 32, 35)) == 8
