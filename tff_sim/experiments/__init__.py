"""Whole experiments: what to simulate, its file, its run with checkpoints and results, sweeps, the paper's rows."""
