"""What a fork server of the tests has in place of `workflows.chain.preload`: no imports."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

nothing: Any = SimpleNamespace(PROBLEM=None)
sys.modules["workflows.chain.preload"] = nothing
