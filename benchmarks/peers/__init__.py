"""Adapters to public implementations, which are imported from a checkout (--peer NAME=PATH) and never copied."""
