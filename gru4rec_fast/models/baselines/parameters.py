"""Parameters of the baselines: names, defaults, checks and help. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from gru4rec_fast.models.parameter_fields import (
    Parameters,
    at_least,
    one_of,
    option,
    parameter_class,
    positive,
    shared_field,
)

PANEL = "Baselines"
MEASURES = ("confidence", "support", "lift")
TIME_UNITS = ("s", "ms", "us", "ns")


def _check_days(value: float | None) -> str | None:
    return None if value is None or value > 0 else "must be positive, or None for the whole log"


@parameter_class
@dataclass(kw_only=True)
class MostPopularParameters(Parameters):
    """Parameters of MostPopular."""

    days: float | None = option(
        None, PANEL, "N", "Count the events of sessions that end in the last N days of the log only.", _check_days
    )
    time_unit: str = option(
        "s", PANEL, "UNIT", f"Unit of the log's times: {', '.join(TIME_UNITS)}.", one_of(*TIME_UNITS)
    )
    in_session: bool = option(
        False, PANEL, "BOOL", "Rank the items of the session by their occurrences in it, before all other items."
    )

    @property
    def ignored_parameter_warnings(self) -> list[str]:
        """One warning for each parameter that has no effect because of other parameters, with the reason."""
        if self.days is None and self.time_unit != "s":
            return [f"time_unit={self.time_unit!r} has no effect without days"]
        return []


@parameter_class
@dataclass(kw_only=True)
class HighestRatedParameters(Parameters):
    """Parameters of HighestRated."""

    prior_count: float = option(
        10.0, PANEL, "N", "Number of ratings, each the mean of all, that are added to those of an item.", positive
    )


@dataclass(kw_only=True)
class _ItemToItemParameters(Parameters):
    """Parameters of the models that score items by the last items of a session."""

    n_last: int = option(
        1, PANEL, "N", "Score by the last N events of a session. Of users, all items are used.", at_least(1)
    )
    n_neighbors: int | None = option(
        None, PANEL, "N", "Keep only the N items with the highest scores for each item; None: all.", at_least(1)
    )


@parameter_class
@dataclass(kw_only=True)
class AssociationRulesParameters(_ItemToItemParameters):
    """Parameters of AssociationRules."""

    measure: str = option("confidence", PANEL, "NAME", f"One of {', '.join(MEASURES)}.", one_of(*MEASURES))
    min_count: int = option(
        1, PANEL, "N", "Leave out rules of items that fewer than N sessions (or users) have in common.", at_least(1)
    )


@parameter_class
@dataclass(kw_only=True)
class SequentialRulesParameters(_ItemToItemParameters):
    """Parameters of SequentialRules."""

    steps: int = option(10, PANEL, "N", "Largest distance of the two events of a rule.", at_least(1))


@parameter_class
@dataclass(kw_only=True)
class ItemKNNParameters(_ItemToItemParameters):
    """Parameters of ItemKNN."""

    n_neighbors: int | None = shared_field(_ItemToItemParameters, "n_neighbors", 100)
    shrinkage: float = option(
        20.0, PANEL, "STRENGTH", "Added to the number of sessions (or users) of each item.", at_least(0)
    )


@parameter_class
@dataclass(kw_only=True)
class ContentSimilarityParameters(_ItemToItemParameters):
    """Parameters of ContentSimilarity."""

    n_neighbors: int | None = shared_field(_ItemToItemParameters, "n_neighbors", 100)
    n_gram: int = option(1, PANEL, "N", "Terms are the words, and sequences of up to N words.", at_least(1))
    min_texts: int = option(1, PANEL, "N", "Leave out terms that fewer than N items have.", at_least(1))


@parameter_class
@dataclass(kw_only=True)
class SessionKNNParameters(Parameters):
    """Parameters of SessionKNN."""

    n_neighbors: int = option(100, PANEL, "N", "Number of neighbors, the most similar sessions.", at_least(1))
    n_recent: int = option(
        1000,
        PANEL,
        "N",
        "Number of candidates for neighbors: the most recent sessions that share an item.",
        at_least(1),
    )
