"""The built-in estimators, one file per family, using only the public API as a plugin would."""
