"""A run: its plan, its cells, training, evaluation, probes, tuning, and the processes that carry them out."""
