"""From bytes to ids: sources, cleaning, vocabularies, the token file, the catalogue of corpora.

The path: `sources` (what a person named, as raw bytes) -> `corpus` (prepared text) ->
`vocabulary` and `bpe` (text to ids and back) -> `token_file` (ids on disk, train and validation).
Knows no torch.
"""
