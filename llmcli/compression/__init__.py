"""Lossless compression with a language model: the audit of bits per byte. Bytes in, bytes out; knows no files."""

from llmcli.compression.container import Header, pack, unpack
from llmcli.compression.model_coder import check_exact, decode, encode, from_ids, to_ids

__all__ = ["Header", "check_exact", "decode", "encode", "from_ids", "pack", "to_ids", "unpack"]
