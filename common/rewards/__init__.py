"""Reward rules: each gives a verdict on a completion, and `registry` finds it by name.

`README.md` in this folder describes them to users.
"""
