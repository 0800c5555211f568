"""The text that a WikiText file was made from, as far as its spaces say; the words themselves are never changed.

WikiText (Merity et al. 2016) is tokenised: spaces around punctuation, and @-@, @,@ and @.@ inside words and numbers.
"""

from __future__ import annotations

import re

NAME = "wikitext/1"  # stands in fingerprints: a change of the rules is a new number

_RULES = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r'" ([^"\n]*?) "'), r'"\1"'),
    (re.compile(r"([(\[{£$]) "), r"\1"),
    (re.compile(r" ([,.;:!?%)\]}]+)(?=[\s\"']|$)"), r"\1"),
    (re.compile(r" ('(?:s|re|ve|ll|d|m)|n't)(?=[\s,.;:!?)\"]|$)"), r"\1"),
    (re.compile(r"(?<=s) '(?= )"), "'"),
    (re.compile(r"^ +| +$", re.M), ""),
)


def detokenize(text: str) -> str:
    """Take the spaces out again. Lines and everything but spaces and the at signs of @-@ stay as they are."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
