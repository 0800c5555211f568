"""llmcli: the language model you can put in a Makefile."""

__version__ = "0.1.0"
