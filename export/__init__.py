"""Keras models as bundles that devices train: TFLite builtin operators only, checked step by step."""
