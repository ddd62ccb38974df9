"""Estimators and tasks by name: where they come from, what their source says, and that one can't touch another."""
