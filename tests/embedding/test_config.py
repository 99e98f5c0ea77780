"""Settings of embedding."""

import pytest

from selfpatch.embedding.config import EmbedConfig


def test_each_feature_once() -> None:
    assert EmbedConfig(features=("patches", "image")).features == ("patches", "image")
    with pytest.raises(ValueError, match=r"features are \['image', 'image'\]; name each once"):
        EmbedConfig(features=("image", "image"))
