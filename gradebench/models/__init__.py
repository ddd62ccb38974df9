"""Policies and reward models: the built-in transformer and its recorded rollouts, pretrained models, adapters."""
