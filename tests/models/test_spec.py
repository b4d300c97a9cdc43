"""A model's spec says what is wrong with it as it is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import models


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "sparse_ce"}, "loss should be one of binary_crossentropy, categorical_crossentropy, huber,"),
        ({"metric": "acc"}, "metric should be one of accuracy, mean_absolute_error, not 'acc'"),
        ({"build": models.get("digits_mlp").build()}, "build should be a function that makes the model, not a model"),
    ],
)
def test_a_spec_that_names_nothing_known_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^model 'digits_mlp': {message}"):
        replace(models.get("digits_mlp"), **changes)
