"""What a trained model is used for: how well it predicts, what it writes, what surprises it.

    reading.py     how a model reads ids: evaluation mode, chunks, rows in parallel, nats per token
    spans.py       which bytes and characters a token covers
    evaluate.py    perplexity, bits per token, character and byte
    sampling.py    GenerationConfig and the choice of the next token (numpy only, no torch)
    stopping.py    stop strings in a text that arrives piece by piece
    generate.py    new text: as ids, as a stream of pieces, as whole strings
    writer.py      the same loop by the compiled kernels, many tokens in one call
    score.py       the surprisal of every character and line
    score_page.py  the same as one self-contained HTML page

Nothing is imported here, so that reading a setting from `sampling` does not load torch.
"""
