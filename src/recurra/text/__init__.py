"""Text sources, cleaning and vocabularies: from bytes to symbols and ids. Independent of torch.

`sources` resolves arguments to raw bytes, `corpus` prepares the text, `vocabulary` and `bpe`
convert it to ids and back, and `decoding` converts ids to text incrementally.
"""
