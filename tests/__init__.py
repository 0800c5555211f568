"""The tests are for the package as it is installed: a checkout's own llmcli/ may hold no built kernels.

So the checkout comes last on the path, here and in every process that a test starts.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path

_CHECKOUT = str(Path(__file__).resolve().parents[1])
if _CHECKOUT in sys.path:
    sys.path.remove(_CHECKOUT)
    sys.path.append(_CHECKOUT)
_found = importlib.util.find_spec("llmcli")
if _found is not None and _found.origin is not None:
    os.environ["PYTHONPATH"] = str(Path(_found.origin).parents[1])
    os.environ["PYTHONSAFEPATH"] = "1"

# A run in the background starts with SIGINT ignored, and so would every program whose Ctrl-C is tested.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
