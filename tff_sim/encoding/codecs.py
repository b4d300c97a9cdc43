"""The codecs by name."""

from __future__ import annotations

from typing import Any, Protocol

from device_runtime.codec import codec_named
from tff_sim.encoding.chunks import Chunks
from tff_sim.encoding.codebook import TurnedPoints
from tff_sim.encoding.floats import Half, Single
from tff_sim.encoding.scalar import DitheredLevels
