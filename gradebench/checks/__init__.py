"""The contract of an estimator, executable: what `gradebench check` runs."""
