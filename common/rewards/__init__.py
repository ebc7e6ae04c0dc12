"""Reward rules: pure functions of a completion and its row, found by name in `registry`."""
