"""Pickles of LlamaIndex components that hold a guard: with it, or not at all."""

from __future__ import annotations

from typing import Any

from mlpm_guard import ConfigurationError


def refuse_to_lose(component: object, state: dict[str, Any], *names: str) -> dict[str, Any]:
    """The state that is going to be pickled.

    LlamaIndex leaves out what cannot be pickled; a component that came back without its guard would let everything pass.

    Raises:
        ConfigurationError: one of these attributes was left out.
    """
    for name in names:
        if getattr(component, name) is not None and name not in state["__dict__"]:
            kind = type(getattr(component, name)).__name__
            raise ConfigurationError(f"{type(component).__name__} cannot be pickled: its {name} ({kind}) cannot be")
    return state
