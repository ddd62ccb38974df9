"""Draws of gradients at frozen parameters, their moments, and the metrics of both gradients and samples."""
