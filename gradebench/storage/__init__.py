"""Files that are whole or not there, folders held by one run, the cache, the hub, and what a run leaves on disk."""
