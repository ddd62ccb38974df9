"""The built-in tasks, one file a task."""
