"""`TimeMachine` and `SortedVocab` of `recurra.d2l`."""

import pytest
import torch

from recurra import d2l
from recurra.errors import ConfigError, SourceError


def test_sorted_vocab_ids_are_in_order_of_tokens():
    vocab = d2l.SortedVocab([["b", "a", "b"], [" "], ["c"]], reserved_tokens=["<pad>"])
    assert vocab.idx_to_token == [" ", "<pad>", "<unk>", "a", "b", "c"]
    assert vocab.unk == vocab["?"] == 2
    assert vocab[["b", "?", "a"]] == [4, 2, 3]
    assert vocab.to_tokens([4]) == ["b"]
    assert vocab.token_freqs[0] == ("b", 2)
    assert d2l.SortedVocab(["x", "y", "x"], min_freq=2).idx_to_token == ["<unk>", "x"]


@pytest.mark.usefixtures("small_corpora")
def test_time_machine_windows_start_at_each_character():
    data = d2l.TimeMachine(batch_size=4, num_steps=5, num_train=10, num_val=6)
    text = "".join(data.vocab.to_tokens(row[0]) for row in data.X)
    assert text.startswith("the kettle no sang to the cat the cat sang back")
    assert data.vocab.idx_to_token == sorted(data.vocab.idx_to_token)
    for i, (x, y) in enumerate(zip(data.X[:20], data.Y[:20], strict=True)):
        assert "".join(data.vocab.to_tokens(x)) == text[i : i + 5]
        assert "".join(data.vocab.to_tokens(y)) == text[i + 1 : i + 6]
    train, val = list(data.train_dataloader()), list(data.val_dataloader())
    assert [len(x) for x, _ in train] == [4, 4, 2]
    assert [len(x) for x, _ in val] == [4, 2]
    assert torch.equal(torch.cat([x for x, _ in val]), data.X[10:16])
    assert torch.equal(torch.cat([y for _, y in val]), data.Y[10:16])
    shuffled = torch.cat([x for x, _ in train])
    assert sorted(shuffled.tolist()) == sorted(data.X[:10].tolist())
    assert shuffled.dtype == torch.int64


@pytest.mark.usefixtures("small_corpora")
def test_time_machine_subclass_can_replace_each_step():
    class Words(d2l.TimeMachine):
        def _download(self):
            return "one two, three. One two three four five " * 3

        def _tokenize(self, text):
            return text.split()

    data = Words(batch_size=2, num_steps=3)
    assert data.vocab.idx_to_token == ["<unk>", "five", "four", "one", "three", "two"]
    assert data.vocab.to_tokens(data.X[0]) == ["one", "two", "three"]
    corpus, vocab = data.build("two ONE six", data.vocab)
    assert vocab is data.vocab
    assert vocab.to_tokens(corpus) == ["two", "one", "<unk>"]
    with pytest.raises(SourceError, match="24 tokens"):
        Words(batch_size=2, num_steps=24)
    with pytest.raises(ConfigError, match="num_steps"):
        Words(batch_size=2, num_steps=0)


@pytest.mark.usefixtures("small_corpora")
def test_time_machine_init_replaced_by_add_to_class_is_used(monkeypatch):
    # Registers the original, so that the method is restored after the test.
    monkeypatch.setattr(d2l.TimeMachine, "__init__", d2l.TimeMachine.__init__)

    @d2l.add_to_class(d2l.TimeMachine)
    def __init__(self, batch_size, num_steps, num_train=3, num_val=2):  # noqa: N807
        super(d2l.TimeMachine, self).__init__()
        self.save_hyperparameters()
        corpus, self.vocab = self.build(self._download())
        self.X = self.Y = torch.tensor(corpus[: num_steps * 5]).reshape(5, num_steps)

    data = d2l.TimeMachine(2, 4)
    assert [x.shape[0] for x, _ in data.train_dataloader()] == [2, 1]
    assert [x.shape[0] for x, _ in data.val_dataloader()] == [2]


@pytest.mark.usefixtures("time_machine")
def test_time_machine_of_real_book_has_173428_characters():
    data = d2l.TimeMachine(batch_size=1024, num_steps=32)
    assert len(data.vocab) == 28
    assert data.X.shape == data.Y.shape == (173_428 - 32, 32)
    assert len(data.train_dataloader()) == 10
    assert len(data.val_dataloader()) == 5
    assert data.vocab["the"[0]] == 21


def test_download_finds_address_of_the_book(small_corpora):
    found = d2l.download(d2l.DATA_URL + "timemachine.txt", "../data", "0" * 40)
    assert found == str(small_corpora / "time_machine.txt")
