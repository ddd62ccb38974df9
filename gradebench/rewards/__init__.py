"""Rewards that read texts."""
