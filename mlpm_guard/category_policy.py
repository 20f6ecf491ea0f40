"""What a guard does about categories: from which probability one flags by itself, and which action it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlpm_guard.errors import CategoryError, ConfigurationError
from mlpm_guard.options import is_number
from mlpm_guard.prototypes.categories import require_name
from mlpm_guard.verdict import Action

NAMES_FROM = 0.3
"""Probability from which a category gives an unsafe verdict its name."""
SPARES_FROM = 0.5
"""Probability from which that name may spare a text that is unsafe from being blocked."""

CategoryAction: TypeAlias = Literal["allow", "review", "block"]
_ACTIONS = ("allow", "review", "block")
_SEVERITY = (Action.ALLOW, Action.REVIEW, Action.BLOCK)


@dataclass(frozen=True)
class CategoryPolicy:
    """What is done about one category.

    Attributes:
        action: what an unsafe verdict of this category asks for: "block", "review", or "allow". It stays flagged. Where the
            category is less likely than not, what the score calls unsafe is blocked all the same.
        threshold: probability, in [0, 1], from which the category makes a verdict unsafe by itself; None for never.

    Raises:
        ConfigurationError: one has a bad value.
    """

    action: CategoryAction = "block"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.action not in _ACTIONS:
            raise ConfigurationError(f"action={self.action!r}: choose one of {', '.join(_ACTIONS)}")
        if self.threshold is not None and not (is_number(self.threshold) and 0.0 <= self.threshold <= 1.0):
            raise ConfigurationError(f"threshold={self.threshold!r}: a probability from 0 to 1, or None")


PolicyLike: TypeAlias = Mapping[str, CategoryAction | CategoryPolicy]
"""Categories by name, with an action or a `CategoryPolicy` each."""

DEFAULT = CategoryPolicy()
"""Of a category that nothing is said about."""


def read_policy(value: object) -> dict[str, CategoryPolicy]:
    """A policy, checked; a copy.

    Args:
        value: see `PolicyLike`; None for an empty one.

    Raises:
        ConfigurationError: it is no mapping, or an action or threshold has a bad value.
        CategoryError: a name cannot be that of a category.
    """
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"policy is {type(value).__name__}: give a dict from categories to actions, as in {{'drugs': 'review'}}"
        )
    found: dict[str, CategoryPolicy] = {}
    for name, each in value.items():
        require_name(name)
        if isinstance(each, CategoryPolicy):
            found[name] = each
        elif isinstance(each, str) and each in _ACTIONS:
            found[name] = CategoryPolicy(each)  # type: ignore[arg-type]
        else:
            raise ConfigurationError(f"policy of {name!r}: one of {', '.join(_ACTIONS)}, or a CategoryPolicy")
    return found


def require_known(policy: Mapping[str, CategoryPolicy], names: tuple[str, ...]) -> None:
    """Check that a policy is about categories that a guard has.

    Raises:
        CategoryError: it names others.
    """
    unknown = sorted(policy.keys() - set(names))
    if unknown:
        raise CategoryError(
            f"the policy names categories that the guard does not have: {', '.join(unknown)}; it has: "
            f"{', '.join(names) or 'none'}"
        )


@dataclass(frozen=True)
class Categorised:
    """What categories make of a verdict.

    Attributes:
        flagged_by: categories whose own threshold is reached.
        category: the one that names the verdict, or None.
        action: what the verdict asks for where it is unsafe.
    """

    flagged_by: tuple[str, ...]
    category: str | None
    action: Action


def categorise(policy: Mapping[str, CategoryPolicy], probabilities: Mapping[str, float], *, unsafe: bool) -> Categorised:
    """Name and action of a verdict.

    The likeliest category names an unsafe verdict, from `NAMES_FROM` on; one whose own threshold is reached may also be less
    likely. The strictest action holds: that of every category that flags by itself and, for what the score calls unsafe, that
    of the name; block where there is none, or where it is not more likely than not.

    Args:
        policy: of the categories.
        probabilities: of all categories.
        unsafe: whether the score calls it unsafe.
    """
    flagged_by = tuple(
        name
        for name, probability in probabilities.items()
        if (threshold := policy.get(name, DEFAULT).threshold) is not None and probability >= threshold
    )
    candidates = [name for name in probabilities if name in flagged_by or (unsafe and probabilities[name] >= NAMES_FROM)]
    category = max(candidates, key=probabilities.__getitem__, default=None)
    actions = [Action(policy.get(name, DEFAULT).action) for name in flagged_by]
    if unsafe:
        spared = category is not None and probabilities[category] >= SPARES_FROM
        actions.append(Action(policy.get(category or "", DEFAULT).action) if spared else Action.BLOCK)
    return Categorised(flagged_by, category, max(actions, key=_SEVERITY.index, default=Action.ALLOW))
