"""Interaction graphs: who interacted with what, reordered, split, and drawn from."""
