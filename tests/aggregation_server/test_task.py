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
        ({"tick_seconds": math.inf}, "task: tick_seconds should be above 0 seconds, not inf"),
        ({"evaluate_every": 0}, "task: evaluate_every should be at least 1, or none, not 0"),
        ({"keep_versions": 0}, "task: keep_versions should be at least 1, not 0"),
        ({"checkin_rate": 0}, "task: checkin_rate should be above 0 a second, not 0"),
        ({"participation_seconds": -1}, "task: participation_seconds should be at least 0, not -1"),
        ({"participation_seconds": math.nan}, "task: participation_seconds should be at least 0, not nan"),
        ({"downlink": "zip"}, "unknown form 'zip' of the weights for devices; known: f32, f16, q8, q4, q2, q1"),
        ({"work": ClientWork(codec="zip")}, "unknown codec 'zip'; known codecs: f32, f16, q8, q4, q2, q1"),
    ],
)
def test_a_field_out_of_range_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Task(RoundConfig(2), **fields)
    assert str(caught.value) == message
