"""Retries that leave a block alone: asked again, a guard would say the same, and a model would be paid for nothing.

LangChain's `with_retry` catches every exception by default. What is defined here retries whatever it is told to, but no block.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.fallbacks import RunnableWithFallbacks
from langchain_core.runnables.retry import RunnableRetry

from langchain_mlpm_guard.errors import GuardBypassWarning
from mlpm_guard.errors import Blocked

if TYPE_CHECKING:
    _Base = Runnable[Any, Any]
else:
    _Base = object


class BlocksOnce(_Base):
    """Mixin for runnables that raise blocks: `with_retry` does not retry them."""

    def with_retry(self, **options: Any) -> Runnable[Any, Any]:
        """As for any runnable, but what was blocked is not tried again, whatever exceptions are to be retried."""
        made = Runnable.with_retry(self, **options)
        assert isinstance(made, RunnableRetry)
        fields = {name: getattr(made, name) for name in type(made).model_fields}
        return GuardedRetry(**{**fields, "bound": _Withholding(bound=made.bound)})


class GatedSequence(BlocksOnce, RunnableSequence[Any, Any]):
    """A sequence that begins with a gate, or that was put in front of one: `gate | prompt | model`.

    A `RunnableSequence`, but for two things: `with_retry` leaves blocks alone, and `with_fallbacks` warns of fallbacks that
    would answer what the gate blocked. It is serialised as a `RunnableSequence`.
    """

    def __init__(self, *steps: Any, **options: Any) -> None:
        super().__init__(*steps, **options)

    def __or__(self, other: Any) -> GatedSequence:
        return _gated(super().__or__(other))

    def __ror__(self, other: Any) -> GatedSequence:
        return _gated(super().__ror__(other))

    def pipe(self, *others: Any, name: str | None = None) -> GatedSequence:
        """See `Runnable.pipe`."""
        return GatedSequence(self, *others, name=name)

    def with_fallbacks(self, fallbacks: Sequence[Runnable[Any, Any]], **kwargs: Any) -> RunnableWithFallbacks[Any, Any]:
        """As for any runnable; warns of fallbacks that no guard stands in front of."""
        if not all(isinstance(each, GatedSequence) or getattr(each, "guards_answers", False) for each in fallbacks):
            warn_of_fallbacks("gate | model.with_fallbacks([other])")
        return super().with_fallbacks(fallbacks, **kwargs)

    @classmethod
    def lc_id(cls) -> list[str]:
        """That of a `RunnableSequence`."""
        return RunnableSequence.lc_id()


class GuardedRetry(RunnableRetry[Any, Any]):
    """Retries what fails, and raises what was blocked at once."""

    # LangChain tells by their names which of these arguments a function takes.
    def _invoke(self, input_: Any, run_manager: Any, config: Any, **kwargs: Any) -> Any:
        return _raised(super()._invoke(input_, run_manager, config, **kwargs))

    async def _ainvoke(self, input_: Any, run_manager: Any, config: Any, **kwargs: Any) -> Any:
        return _raised(await super()._ainvoke(input_, run_manager, config, **kwargs))

    def _batch(self, inputs: list[Any], run_manager: Any, config: Any, **kwargs: Any) -> list[Any]:
        found = super()._batch(inputs, run_manager, config, **kwargs)
        return [each.error if isinstance(each, _Withheld) else each for each in found]

    async def _abatch(self, inputs: list[Any], run_manager: Any, config: Any, **kwargs: Any) -> list[Any]:
        found = await super()._abatch(inputs, run_manager, config, **kwargs)
        return [each.error if isinstance(each, _Withheld) else each for each in found]


@dataclass(frozen=True)
class _Withheld:
    """A block on its way past a retry."""

    error: Blocked


class _Withholding(RunnableBindingBase[Any, Any]):
    """A runnable whose blocks are values. Has no run of its own."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None) -> Any:  # noqa: A002
        """See `Runnable`."""
        try:
            return super().invoke(input, config, **kwargs)
        except Blocked as error:
            return _Withheld(error)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None) -> Any:  # noqa: A002
        """See `Runnable`."""
        try:
            return await super().ainvoke(input, config, **kwargs)
        except Blocked as error:
            return _Withheld(error)

    def batch(self, *args: Any, **kwargs: Any) -> list[Any]:
        """See `Runnable`; a retry asks for exceptions as values."""
        return [_Withheld(each) if isinstance(each, Blocked) else each for each in super().batch(*args, **kwargs)]

    async def abatch(self, *args: Any, **kwargs: Any) -> list[Any]:
        """`batch` for event loops."""
        return [_Withheld(each) if isinstance(each, Blocked) else each for each in await super().abatch(*args, **kwargs)]


def warn_of_fallbacks(safe: str) -> None:
    """Warn that a fallback outside of a gate answers what the gate blocked."""
    warnings.warn(
        f"with_fallbacks around a gate: the fallback takes over what was blocked, unguarded. Safe: {safe}",
        GuardBypassWarning,
        stacklevel=3,
    )


def _gated(sequence: Any) -> GatedSequence:
    return GatedSequence(*sequence.steps, name=sequence.name)


def _raised(value: Any) -> Any:
    if isinstance(value, _Withheld):
        raise value.error
    return value
