"""What a command writes with --json and another reads back: an object that names its schema."""

from __future__ import annotations

import json
from typing import Any


def parse_document(text: str) -> dict[str, Any]:
    """The document in a file's text; an empty one where there is none."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) and "schema" in document else {}
