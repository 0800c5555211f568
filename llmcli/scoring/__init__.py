"""How surprised a model is by text: windows, log-probabilities, totals and an interval. Ids in, numbers out.

Two perplexities compare only when their fingerprints are equal. Knows neither files nor terminals.
"""

from llmcli.scoring.documents import Document, Encodes, Floats, Scores, encode, logprobs, score
from llmcli.scoring.figures import Total, fingerprint, report, too_short, total
from llmcli.scoring.protocols import PROTOCOLS, Rule, Sliding, Window, default_stride, every, protocol
from llmcli.scoring.resampling import bootstrap

__all__ = [
    "PROTOCOLS",
    "Document",
    "Encodes",
    "Floats",
    "Rule",
    "Scores",
    "Sliding",
    "Total",
    "Window",
    "bootstrap",
    "default_stride",
    "encode",
    "every",
    "fingerprint",
    "logprobs",
    "protocol",
    "report",
    "score",
    "too_short",
    "total",
]
