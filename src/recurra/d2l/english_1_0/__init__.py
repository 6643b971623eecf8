"""The classes of the English edition 1.0 of the book, which `recurra.d2l` exports.

That edition has classes where the earlier editions have functions: a `DataModule`, a `Module` and a
`Trainer` (section 3.2), and subclasses of these for language models (chapters 9 and 10).
"""
