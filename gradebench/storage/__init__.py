"""Atomic files, locks on folders, the cache, the hub, and the files of a run."""
