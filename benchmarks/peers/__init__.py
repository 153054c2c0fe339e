"""Adapters of other people's code, which is imported from a checkout given by --peer NAME=PATH and never copied."""
