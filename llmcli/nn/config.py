"""Reading a `config.json` strictly: refuse what changes the arithmetic and is not implemented, check every value."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from llmcli.errors import ModelError

T = TypeVar("T")
TokenId = int  # 0 is one


def refuse(config: Mapping[str, Any], off: Mapping[str, Any]) -> None:
    """Raise ModelError for a key with another value than the one that turns it off (null is off, too)."""
    for key, value in off.items():
        if config.get(key, value) not in (value, None):
            raise ModelError(
                f"config.json: {key} = {config[key]!r} is not supported; expected {value!r} or no such key"
            )


def choose(config: Mapping[str, Any], key: str, default: Any, known: Collection[Any]) -> Any:
    """The value of a key, one of those known. Raises ModelError for another."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, str | int | float | bool) or value not in known:
        raise ModelError(
            f"config.json: {key} {value!r} is not supported; expected one of: {', '.join(map(str, known))}"
        )
    return value


def read(cls: type[T], config: Mapping[str, Any]) -> T:
    """A dataclass of the keys of a `config.json`; keys that it has no field for are ignored. Raises ModelError."""
    chosen = {field.name: config[field.name] for field in fields(cls) if field.name in config}  # type: ignore[arg-type]
    for field in fields(cls):  # type: ignore[arg-type]
        value = chosen.get(field.name, field.default)
        if not fits(str(field.type), value):
            got = repr(chosen[field.name]) if field.name in chosen else "missing"
            raise ModelError(f"config.json: {field.name} = {got}; expected {field.type}, positive and finite")
    return cls(**chosen)


def fits(kind: str, value: Any) -> bool:
    """Whether a JSON value fits the annotation of a field (true is no number, and sizes are positive)."""
    if isinstance(value, bool) or kind == "bool":
        return isinstance(value, bool) and kind == "bool"
    if kind.startswith("float"):
        return (value is None and kind.endswith("None")) or (
            isinstance(value, int | float) and math.isfinite(value) and value >= 0
        )
    if kind == "str":
        return isinstance(value, str)
    if kind == "TokenId":
        return isinstance(value, int) and value >= 0
    if kind.startswith("tuple"):
        return isinstance(value, tuple)
    return (value is None and kind == "int | None") or (isinstance(value, int) and value > 0)
