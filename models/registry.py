"""The models by name."""

from __future__ import annotations

from models import cifar_cnn, digits_mlp, mnist_2nn, mnist_cnn, shakespeare_lstm, word_lstm
from models.spec import ModelSpec

_SPECS: dict[str, ModelSpec] = {
    module.SPEC.name: module.SPEC
    for module in (cifar_cnn, digits_mlp, mnist_2nn, mnist_cnn, shakespeare_lstm, word_lstm)
}


class UnknownModelError(LookupError):
    """There is no model with this name; the message lists those that there are."""


def names() -> tuple[str, ...]:
    """The names of all models, in alphabetical order."""
    return tuple(sorted(_SPECS))


def get(name: str) -> ModelSpec:
    """The model with this name.

    Raises:
        UnknownModelError: there is none.
    """
    if name not in _SPECS:
        raise UnknownModelError(f"unknown model {name!r}; known models: {', '.join(names())}")
    return _SPECS[name]
