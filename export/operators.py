"""Which operators a TFLite file is made of, read from the file itself."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass

from tensorflow.lite.python import schema_py_generated as schema

from device_runtime.errors import IntegrityError
from export.flatbuffer import IDENTIFIER

BUILTIN_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_FLEX = "Flex"


@dataclass(frozen=True)
class Operators:
    """Operators of all subgraphs: builtin ones by name, custom ones by the name that they ask a runtime for."""

    builtin: dict[str, int]
    custom: dict[str, int]

    @property
    def flex(self) -> int:
        """How many need the Flex delegate."""
        return sum(count for name, count in self.custom.items() if name.startswith(_FLEX))

    @property
    def other_custom(self) -> int:
        """How many are custom operators of another kind."""
        return sum(self.custom.values()) - self.flex


def read_operators(artifact: bytes, where: str) -> Operators:
    """Count the operators of a TFLite file, in every subgraph, those of control flow included.

    Raises:
        IntegrityError: the bytes are no TFLite file; the message names `where`.
    """
    try:
        return _count_operators(artifact)
    except (struct.error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise IntegrityError(f"{where}: not a TFLite file, or damaged; export the bundle again") from None


def _count_operators(artifact: bytes) -> Operators:
    if artifact[4:8] != IDENTIFIER:
        raise ValueError(artifact[4:8])
    model = schema.Model.GetRootAsModel(artifact, 0)
    builtin: Counter[str] = Counter()
    custom: Counter[str] = Counter()
    for index in range(model.SubgraphsLength()):
        subgraph = model.Subgraphs(index)
        for position in range(subgraph.OperatorsLength()):
            code = model.OperatorCodes(subgraph.Operators(position).OpcodeIndex())
            # Codes below 127 may stand in the older, deprecated field alone.
            number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            if number == schema.BuiltinOperator.CUSTOM:
                custom[code.CustomCode().decode()] += 1
            else:
                builtin[BUILTIN_NAMES[number]] += 1
    return Operators(dict(sorted(builtin.items())), dict(sorted(custom.items())))
