"""Adapters to public implementations, which are imported from a checkout (--peer NAME=PATH) and never copied."""

import argparse


def checkout_path(argument: str) -> str:
    """Return PATH of an argument official=PATH, as the `type` of argparse."""
    name, _, path = argument.partition("=")
    if name != "official" or not path:
        raise argparse.ArgumentTypeError(f"{argument}: give official=PATH")
    return path
