"""A chain whose parent imports nothing, so that it is there at once: `small_chain.py make all`.

With `THREAD=1` in the environment its parent has a thread, as some import might start.
"""

from __future__ import annotations

import os
import sys
import threading
import time

from workflows.chain import parent

parent.PRELOADED = ()
parent.SECONDS_TO_STOP = 1.0

if os.environ.get("THREAD"):
    parent.preload = threading.Thread(target=time.sleep, args=(60,), daemon=True).start

parent.run_with_parent(sys.argv[1:])
