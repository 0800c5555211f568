"""`python -m llmcli` is `llmcli`: the console script starts here too."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line; until it takes over the signals, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from llmcli.cli import main as run

    run()


if __name__ == "__main__":
    main()
