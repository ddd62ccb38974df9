"""The built-in tasks, one file per task."""
