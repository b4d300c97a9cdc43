"""Dropout, whose masks follow from a step's seed."""

from __future__ import annotations

import tensorflow as tf

from tests.export.families.family import branches, chain

keras = tf.keras.layers

FAMILIES = {
    "dropout": branches(
        (4, 6),
        {
            "plain": lambda x: chain(x, keras.Dense(8), keras.Dropout(0.4), keras.Dense(3)),
            "twice": lambda x: chain(x, keras.Dropout(0.2), keras.Dense(8, "tanh"), keras.Dropout(0.5)),
            "spatial": lambda x: chain(x, keras.Dense(8), keras.SpatialDropout1D(0.4), keras.Conv1D(3, 2)),
            "shared_mask": lambda x: chain(x, keras.Dense(8), keras.Dropout(0.3, noise_shape=(None, 1, 8))),
        },
    )
}
