"""Checks of options: what a guard is set to is checked when it is set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlpm_guard.errors import ConfigurationError


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that an option is one of its choices.

    Raises:
        ConfigurationError: it is not.
    """
    if value not in choices:
        raise ConfigurationError(f"{name}={value!r}: choose one of {', '.join(choices)}")


def is_number(value: object) -> bool:
    """Whether a value is a finite number, which True and False are not."""
    return isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool) and bool(np.isfinite(value))
