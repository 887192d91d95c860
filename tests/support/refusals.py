"""What `valued.normalize` refuses."""

from __future__ import annotations

import pytest

import valued


def refusal(value: object) -> valued.SerializationError:
    with pytest.raises(valued.SerializationError) as caught:
        valued.normalize(value)
    return caught.value
