"""The built-in estimators, one file a family, written on the public API as a plugin would be."""
