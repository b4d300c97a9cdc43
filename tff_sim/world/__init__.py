"""The world around a round: who is there, who drops out or comes late, and whose updates do harm."""

from __future__ import annotations

from tff_sim.world.description import FAULTS, Availability, Faults, Stragglers, World
from tff_sim.world.planner import ClientTraits, world_planner

__all__ = ["FAULTS", "Availability", "ClientTraits", "Faults", "Stragglers", "World", "world_planner"]
