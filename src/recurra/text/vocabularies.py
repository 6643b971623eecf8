"""Load a vocabulary of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from reprlib import repr as shortened
from typing import Any

from recurra.errors import ConfigError
from recurra.text.bpe import BpeVocabulary
from recurra.text.byte_vocabulary import ByteVocabulary
from recurra.text.vocabulary import CharVocabulary, Vocabulary, WordVocabulary

_KINDS: dict[str, type[Vocabulary]] = {
    kind.kind: kind for kind in (CharVocabulary, WordVocabulary, ByteVocabulary, BpeVocabulary)
}


def vocabulary_from_dict(values: Mapping[str, Any]) -> Vocabulary:
    """Build a vocabulary from the result of its `to_dict`.

    Raises:
        ConfigError: if a field is missing or invalid. The message names the field.
        MissingExtraError: if it is a BPE vocabulary and tokenizers is not installed.
    """
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(
            f"vocabulary field 'kind' is {shortened(kind)}; it must be one of {', '.join(_KINDS)}"
        )
    return _KINDS[kind].from_values(values)
