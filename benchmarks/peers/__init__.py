"""Adapters to other people's code, which is imported from a checkout (--peer NAME=PATH) and never copied."""
