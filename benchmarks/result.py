"""`Result`: one figure of a benchmark beside its reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """A figure in `unit`, and the same of a reference: measured in the same run, or a fixed limit that it names.

    The note, if any, says what was measured on, and how far repetitions were apart.
    """

    name: str
    value: float
    unit: str
    reference: str
    reference_value: float
    note: str = ""

    @property
    def ratio(self) -> float:
        """Below 1 is better than the reference."""
        return self.value / self.reference_value

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self) | {"ratio": self.ratio}
        if not self.note:
            del fields["note"]
        return fields
