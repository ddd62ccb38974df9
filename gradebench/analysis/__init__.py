"""From finished runs to verdicts: statistics, tables, curves, frontiers, claims."""
