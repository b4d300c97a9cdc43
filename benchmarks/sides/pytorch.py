"""PyTorch's side, in an environment of its own: python -m benchmarks.sides.pytorch MODEL THREADS BATCH_SIZE."""

from __future__ import annotations

import sys

import torch
from torch import nn

from benchmarks.sides import take_turns


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


MODELS = {"mnist_cnn": (_cnn, 1_663_370), "mnist_2nn": (_mlp, 199_210)}
"""Name → how to make it, and its number of parameters."""


def main(name: str, threads: str, batch_size: str) -> None:
    """Eager steps of SGD."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    build, parameters = MODELS[name]
    model = build()
    if sum(weight.numel() for weight in model.parameters()) != parameters:
        raise ValueError(f"{name}: not the model of this name, whose parameters are {parameters}")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.rand(int(batch_size), 1, 28, 28), torch.randint(0, 10, (int(batch_size),))

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss)

    take_turns(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
