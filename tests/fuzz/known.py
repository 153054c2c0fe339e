"""Findings that are not mended yet: file of the corpus and reason. A listed case that is mended must be removed."""

KNOWN: dict[str, str] = {}
