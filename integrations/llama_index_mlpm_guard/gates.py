"""The gate in front of retrieval: judges everything of a query that is answered or embedded, once a query."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import fields
from functools import reduce
from types import MethodType
from typing import Any, Literal, NamedTuple, TypeAlias

from llama_index.core.schema import QueryBundle

from llama_index_mlpm_guard.events import emit
from mlpm_guard import ConfigurationError, Guard, Review, Rules, Verdict
from mlpm_guard.policy import Policy, worse
from mlpm_guard.verdict import OnReview

OnBlock: TypeAlias = Literal["replace", "raise"]

_SETTINGS = (str, int, float, tuple, MethodType, Rules, Review)
_MEMO = "_mlpm_guard_judged"


def prompt_guard(guard: object) -> Guard:
    """The guard itself.

    Raises:
        ConfigurationError: it is no guard, or judges answers.
    """
    if not isinstance(guard, Guard):
        raise ConfigurationError(f"guard is {type(guard).__name__}: pass a mlpm_guard.Guard, such as Guard.from_pretrained()")
    if guard.target != "prompt":
        raise ConfigurationError('guard judges answers: pass one with target="prompt" here, and this one as moderator=')
    return guard


def choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ConfigurationError: it is none.
    """
    if value not in choices:
        raise ConfigurationError(f"{name}={value!r}: choose one of {', '.join(choices)}")


async def check_together(guard: Guard, texts: Sequence[str]) -> list[Verdict]:
    """Verdicts on texts that belong together, in one call of the guard and without blocking the event loop.

    `Guard.acheck_batch` shares its calls with whoever asks at the same time, and so may judge the first text ahead of the rest.
    """
    return await asyncio.to_thread(guard.check_batch, texts)


class QueryGate:
    """Judges queries for a component. Holds configuration only.

    The verdict stays with the `QueryBundle` that was judged, so that an engine that retrieves and synthesises in two calls, or
    wraps another guarded component, asks a guard once. A bundle that was changed is judged again, and so is any bundle when the
    guard was changed.

    Args:
        guard: judges the query.
        component: name of the component that acts on the verdicts.
        on_review: what an action of "review" does: "pass", or "block".

    Raises:
        ConfigurationError: the guard is none, or judges answers, or `on_review` is neither.
    """

    def __init__(self, guard: Guard, component: str, on_review: OnReview = "pass") -> None:
        choice("on_review", on_review, ("pass", "block"))
        self.guard = prompt_guard(guard)
        self._component = component
        self._on_review: OnReview = on_review

    def judge(self, query: QueryBundle) -> Verdict:
        """The verdict on a query: the worst of its text and of the texts that are embedded in its place."""
        judging = _Judging(query, self.guard)
        if (known := judging.known()) is not None:
            return known.resolved(self._on_review)
        if len(judging.texts) == 1:
            return self._keep(judging, self.guard.check(judging.texts[0]))
        return self._keep(judging, reduce(worse, self.guard.check_batch(judging.texts)))

    async def ajudge(self, query: QueryBundle) -> Verdict:
        """`judge` without blocking the event loop."""
        judging = _Judging(query, self.guard)
        if (known := judging.known()) is not None:
            return known.resolved(self._on_review)
        if len(judging.texts) == 1:
            return self._keep(judging, await self.guard.acheck(judging.texts[0]))
        return self._keep(judging, reduce(worse, await check_together(self.guard, judging.texts)))

    def _keep(self, judging: _Judging, verdict: Verdict) -> Verdict:
        judging.keep(verdict)
        return emit("query", self._component, verdict.resolved(self._on_review))


class _Judging:
    """The texts of one query, and what its verdict depends on besides them."""

    def __init__(self, query: QueryBundle, guard: Guard) -> None:
        self._query, self._guard, self._policy = query, guard, guard.policy()
        embedded = [text for text in query.custom_embedding_strs or () if text.strip()]
        self.texts = tuple(dict.fromkeys([query.query_str, *embedded]))

    def known(self) -> Verdict | None:
        """The verdict that was kept, if it still holds."""
        kept = self._query.__dict__.get(_MEMO)
        if not isinstance(kept, _Kept) or kept.guard is not self._guard or kept.texts != self.texts:
            return None
        return kept.verdict if _same(kept.policy, self._policy) else None

    def keep(self, verdict: Verdict) -> None:
        """Leave the verdict with the query. What could not be judged is tried again."""
        if verdict.error is None:
            self._query.__dict__[_MEMO] = _Kept(self._guard, self._policy, self.texts, verdict)


def _same(then: Policy, now: Policy) -> bool:
    """Whether two policies give the same verdicts: equal settings, and the very same objects that measure."""
    pairs = [(getattr(then, each.name), getattr(now, each.name)) for each in fields(then)]
    return all(one is two or (isinstance(one, _SETTINGS) and one == two) for one, two in pairs)


class _Kept(NamedTuple):
    """A verdict that travels with a query, and is left behind when that is copied or pickled."""

    guard: Guard
    policy: Policy
    texts: tuple[str, ...]
    verdict: Verdict

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()
