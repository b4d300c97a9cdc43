"""The task's configuration: errors name the field."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aggregation_server.rounds import RoundConfig
from aggregation_server.task import Task
from device_runtime.errors import InputError
from device_runtime.work import ClientWork


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "task: rounds should be at least 1, or none for an endless task, not 0"),
        ({"retry_seconds": 0}, "task: retry_seconds should be above 0 seconds, not 0"),
        ({"poll_seconds": math.nan}, "task: poll_seconds should be above 0 seconds, not nan"),
        ({"work": ClientWork(codec="zip")}, "unknown codec 'zip'; known codecs: f32, f16, q8, q4, q2, q1"),
    ],
)
def test_a_field_out_of_range_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Task(RoundConfig(2), **fields)
    assert str(caught.value) == message
