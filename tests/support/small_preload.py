"""Stands in for `workflows.chain.preload` in the fork server of tests, and imports nothing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

nothing: Any = SimpleNamespace(PROBLEM=None)
sys.modules["workflows.chain.preload"] = nothing
