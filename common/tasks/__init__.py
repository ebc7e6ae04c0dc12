"""Questions with checkable answers: one generator per file, found by name in `registry`."""
