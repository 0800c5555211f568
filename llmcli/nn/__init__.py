"""Parts that several models share verbatim; a part moves here when the second model needs it."""
