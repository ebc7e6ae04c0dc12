"""Questions with checkable answers: generated, drawn from reasoning-gym, or read from data sets.

`registry` finds the generators by name, and `sources` reads the sources in a recipe's [data].
"""
