"""Populations: named clients and their examples, in memory, on disk, of TFF; the same from round to round or not."""

from __future__ import annotations

from tff_sim.population.base import Population
from tff_sim.population.growth import GrowingPopulation, Growth
from tff_sim.population.in_memory import DealtPopulation
from tff_sim.population.on_disk import StoredPopulation, write_population
from tff_sim.population.tff_client_data import from_client_data

__all__ = [
    "DealtPopulation",
    "GrowingPopulation",
    "Growth",
    "Population",
    "StoredPopulation",
    "from_client_data",
    "write_population",
]
