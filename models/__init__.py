"""Keras models, one file each, and their registry. Imports TensorFlow and nothing else."""

from models.initial import initial_weights, seeded_model, tensor_names
from models.optimizers import ClientOptimizer
from models.registry import UnknownModelError, get, names
from models.spec import ModelSpec
from models.state import trained_variables

__all__ = [
    "ClientOptimizer",
    "ModelSpec",
    "UnknownModelError",
    "get",
    "initial_weights",
    "names",
    "seeded_model",
    "tensor_names",
    "trained_variables",
]
