"""The rows of layers, losses and optimisers that are compared with Keras in every runtime, by family."""

from tests.export.families import (
    activation,
    attention,
    convolution,
    dropout,
    frozen,
    merging,
    normalization,
    objective,
    pooling,
    recurrent,
    shape,
)
from tests.export.families.family import Family

FAMILIES: dict[str, Family] = {
    **activation.FAMILIES,
    **attention.FAMILIES,
    **convolution.FAMILIES,
    **dropout.FAMILIES,
    **frozen.FAMILIES,
    **merging.FAMILIES,
    **normalization.FAMILIES,
    **objective.FAMILIES,
    **pooling.FAMILIES,
    **recurrent.FAMILIES,
    **shape.FAMILIES,
}

__all__ = ["FAMILIES", "Family"]
