"""The package as a whole: types of sources."""

import pytest

import recurra
from recurra.errors import ConfigError


@pytest.mark.parametrize("source", [3, None, [3], {"a": 1}])
def test_train_source_of_wrong_type_raises(source):
    with pytest.raises(ConfigError, match="source is"):
        recurra.train(source)
