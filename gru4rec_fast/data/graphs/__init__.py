"""Interaction graphs: construction, reordering, splits, and sampling of BPR triples."""
