"""A plugin of GradeBench: one estimator that works, and one that is broken on purpose."""
