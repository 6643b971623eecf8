"""State of the process that `train` restores: threads, random generator and signals."""

import signal

import torch


def test_train_restores_threads_generator_and_signals(run, tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    run(tmp_path / "run", steps=2, threads=2, seed=3)
    after = torch.get_rng_state(), torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
