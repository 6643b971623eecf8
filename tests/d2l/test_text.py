import pytest
import torch

from recurra import d2l
from recurra.errors import ConfigError, CorpusError

TOKENS = [["b", "a", "b"], ["c", "b", "a"], ["d"]]


def test_vocab_is_sorted_by_count_then_by_appearance():
    vocab = d2l.Vocab(TOKENS)
    assert vocab.idx_to_token == ["<unk>", "b", "a", "c", "d"]
    assert vocab.token_to_idx == {"<unk>": 0, "b": 1, "a": 2, "c": 3, "d": 4}
    assert vocab.token_freqs == [("b", 3), ("a", 2), ("c", 1), ("d", 1)]
    assert len(vocab) == 5


def test_vocab_of_a_flat_list_with_rare_and_reserved_tokens():
    vocab = d2l.Vocab(["x", "y", "x", "z"], min_freq=2, reserved_tokens=["<pad>", "<bos>"])
    assert vocab.idx_to_token == ["<unk>", "<pad>", "<bos>", "x"]
    assert d2l.Vocab(["<pad>", "x"], reserved_tokens=["<pad>"]).idx_to_token == [
        "<unk>",
        "<pad>",
        "x",
    ]
    assert d2l.Vocab().idx_to_token == ["<unk>"]


def test_vocab_looks_up_both_ways_and_reads_the_unknown_as_0():
    vocab = d2l.Vocab(TOKENS)
    assert vocab["a"] == 2
    assert vocab["?"] == vocab.unk == 0
    assert vocab[["a", "?", "b"]] == [2, 0, 1]
    assert vocab[[["a"], ("b", "c")]] == [[2], [1, 3]]
    assert vocab.to_tokens(3) == "c"
    assert vocab.to_tokens([1]) == ["b"]
    assert vocab.to_tokens(torch.tensor([4, 0])) == ["d", "<unk>"]
    assert vocab.to_tokens(torch.tensor(2)) == "a"


def test_tokenize_by_word_and_by_character():
    assert d2l.tokenize(["a cat", ""]) == [["a", "cat"], []]
    assert d2l.tokenize(["a c"], "char") == [["a", " ", "c"]]
    with pytest.raises(ConfigError, match="'syllable'"):
        d2l.tokenize(["a"], "syllable")


def test_count_corpus_takes_lists_of_one_and_two_levels():
    assert d2l.count_corpus(["a", "b", "a"]) == {"a": 2, "b": 1}
    assert d2l.count_corpus(TOKENS) == {"a": 2, "b": 3, "c": 1, "d": 1}
    assert d2l.count_corpus([]) == {}


@pytest.mark.usefixtures("stand_in")
def test_lines_are_letters_only_and_lower_case():
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


@pytest.mark.usefixtures("stand_in")
def test_max_tokens_cuts_the_ids_and_not_the_vocabulary():
    corpus, vocab = d2l.load_corpus_time_machine()
    cut, same = d2l.load_corpus_time_machine(5)
    assert cut == corpus[:5]
    assert same.idx_to_token == vocab.idx_to_token
    # Lines are joined without anything between them.
    assert "".join(vocab.to_tokens(corpus[:30])) == "the kettle nosang to the catth"
    assert vocab.token_freqs[0] == (" ", 20 * (2 + 3 + 7 + 8))


@pytest.mark.usefixtures("stand_in")
def test_lyrics_ids_spell_the_text_with_spaces_for_line_ends():
    corpus, char_to_idx, idx_to_char, vocab_size = d2l.load_data_jay_lyrics()
    assert "".join(idx_to_char[i] for i in corpus[:18]) == "雨落在屋顶 我听见雨  雨听见我 雨"
    assert vocab_size == len(idx_to_char) == len(char_to_idx) == len(set("雨落在屋顶我听见 "))
    assert [char_to_idx[char] for char in idx_to_char] == list(range(vocab_size))


def test_download_finds_the_books_names(stand_in):
    d2l.DATA_HUB["time_machine"] = (d2l.DATA_URL + "timemachine.txt", "0")
    assert d2l.download("time_machine") == str(stand_in / "time_machine.txt")
    with pytest.raises(CorpusError):
        d2l.download("kaggle_house_train")


@pytest.mark.usefixtures("time_machine")
def test_the_time_machine_has_28_characters():
    corpus, vocab = d2l.load_corpus_time_machine()
    assert (len(corpus), len(vocab)) == (170580, 28)
    train_iter, vocab = d2l.load_data_time_machine(32, 35)
    assert (len(train_iter.corpus), len(vocab)) == (10000, 28)
    assert train_iter.corpus == corpus[:10000]
    assert sum(1 for _ in train_iter) == 8


@pytest.mark.usefixtures("lyrics")
def test_the_lyrics_have_1027_characters():
    corpus, _, idx_to_char, vocab_size = d2l.load_data_jay_lyrics()
    assert (len(corpus), len(set(idx_to_char)), vocab_size) == (10000, 1027, 1027)
    assert sum(1 for _ in d2l.data_iter_random(corpus, 32, 35)) == 8
    assert sum(1 for _ in d2l.data_iter_consecutive(corpus, 32, 35)) == 8
