"""Pickles of LlamaIndex components that hold a guard: with it, or not at all."""

from __future__ import annotations

import pickle

from mlpm_guard import ConfigurationError


def refuse_to_lose(component: object, *names: str) -> None:
    """To be called before LlamaIndex collects a component's state.

    LlamaIndex drops attributes that cannot be pickled, from the pickle and from the component itself, and says so in a log.
    Either would then let everything pass.

    Raises:
        ConfigurationError: one of these attributes cannot be pickled.
    """
    for name in names:
        value = getattr(component, name)
        try:
            pickle.dumps(value)
        except Exception as error:
            raise ConfigurationError(
                f"{type(component).__name__} cannot be pickled: its {name} ({type(value).__name__}) cannot be"
            ) from error
