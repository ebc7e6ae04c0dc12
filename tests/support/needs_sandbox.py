"""The mark of tests that run a program in the sandbox."""

from __future__ import annotations

import pytest

from common.errors import MissingToolError
from common.rewards.sandbox.bubblewrap import find_bwrap

try:
    find_bwrap()
    no_sandbox = ""
except MissingToolError as missing:
    no_sandbox = str(missing)

needs_sandbox = pytest.mark.skipif(bool(no_sandbox), reason=no_sandbox)
