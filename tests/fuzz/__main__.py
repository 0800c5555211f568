"""`python -m tests.fuzz READER [OPTION OF LIBFUZZER]…`: coverage-guided fuzzing of a reader until it fails.

Needs atheris. Inputs that reach new code are kept in runs/fuzz/READER; a finding is written to the working directory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris


def main() -> None:
    """Fuzz the reader that the command line names."""
    folder = Path(tempfile.mkdtemp())
    with atheris.instrument_imports(include=["llmcli", "jinja2"]):
        from tests.fuzz.readers import CORPUS, READERS, bounded

        if len(sys.argv) < 2 or sys.argv[1] not in READERS:
            sys.exit(f"expected one of: {', '.join(READERS)}")
        name = sys.argv[1]
        for path in (CORPUS / name).iterdir():  # some modules are imported when they are needed
            READERS[name](path.read_bytes(), folder)
    kept = Path("runs") / "fuzz" / name
    kept.mkdir(parents=True, exist_ok=True)

    def one(data: bytes) -> None:
        with bounded():
            READERS[name](data, folder)

    atheris.Setup([sys.argv[0], *sys.argv[2:], str(kept), str(CORPUS / name)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
