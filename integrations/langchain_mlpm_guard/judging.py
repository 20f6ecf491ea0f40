"""Asking a guard, in one call for many, and telling LangChain what it said. Computes no score; says nothing of the text."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.callbacks.manager import adispatch_custom_event, dispatch_custom_event
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import patch_config

from langchain_mlpm_guard.messages import Turns
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.guard import Guard
from mlpm_guard.policy import resettled, worse
from mlpm_guard.verdict import Action, Mode, Verdict

EVENT = "mlpm_guard"
"""Name of the custom event, and of the key in `response_metadata`, that tell a verdict."""

Stage: TypeAlias = Literal["prompt", "response", "tool_call", "tool_result", "document"]
OnReview: TypeAlias = Literal["pass", "block"]

_unnamed = itertools.count(1)
# By id, as a scorer's arrays cannot be hashed; the reference tells an object from a later one at its place.
_numbers: dict[int, tuple[weakref.ref[Any], int]] = {}
_numbers_lock = threading.Lock()


@dataclass(frozen=True)
class Judge:
    """A guard with what a gate overrides of it.

    Attributes:
        guard: judges conversations: a `Guard`, or anything with its `check` or `acheck`.
        threshold: instead of the guard's own; None keeps that.
        mode: instead of the guard's own; None keeps that.
    """

    guard: Any
    threshold: float | None = None
    mode: Mode | None = None

    def check(self, conversations: Sequence[Turns]) -> list[Verdict]:
        """Verdicts on all conversations, in one call where the guard has `check_batch`."""
        return [self._settled(each) for each in _check(self.guard, conversations)]

    async def acheck(self, conversations: Sequence[Turns]) -> list[Verdict]:
        """`check` without blocking the event loop."""
        return [self._settled(each) for each in await _acheck(self.guard, conversations)]

    def worst(self, groups: Sequence[Sequence[Turns]]) -> list[Verdict | None]:
        """The deciding verdict of every group, all judged together; None for a group with nothing in it."""
        return _regroup(groups, self.check([each for group in groups for each in group]))

    async def aworst(self, groups: Sequence[Sequence[Turns]]) -> list[Verdict | None]:
        """`worst` without blocking the event loop."""
        flat = [each for group in groups for each in group]
        if len(groups) > 1 and callable(getattr(self.guard, "check_batch", None)):
            # A batch is one call of the scorer; the micro-batcher behind `acheck_batch` may make several of it.
            return _regroup(groups, await asyncio.to_thread(self.check, flat))
        return _regroup(groups, await self.acheck(flat))

    def _settled(self, verdict: object) -> Verdict:
        if not isinstance(verdict, Verdict):
            raise ConfigurationError(f"the guard returned {type(verdict).__name__}, not a Verdict")
        if self.threshold is None and self.mode is None:
            return verdict
        threshold = verdict.threshold if self.threshold is None else self.threshold
        mode = verdict.mode if self.mode is None else self.mode
        if threshold == verdict.threshold and mode == verdict.mode:
            return verdict
        if isinstance(self.guard, Guard):
            return replace(self.guard.policy(), threshold=threshold, mode=mode).resettled(verdict)
        return resettled(verdict, threshold, mode, getattr(self.guard, "on_error", "block"))


def stops(verdict: Verdict | None, on_review: OnReview = "pass") -> bool:
    """Whether a gate stops: on "block", and on "review" where it was told so."""
    if verdict is None:
        return False
    return verdict.action == Action.BLOCK or (verdict.action == Action.REVIEW and on_review == "block")


def record(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain data for metadata, events and saved state; evidence per layer is left out for its size."""
    return verdict.model_dump(mode="json", exclude={"layers"})


def event(verdict: Verdict, stage: Stage, *, blocked: bool) -> dict[str, Any]:
    """What an event says."""
    return {"stage": stage, "blocked": blocked, "verdict": record(verdict)}


def tell(
    run: CallbackManagerForChainRun, config: RunnableConfig, verdict: Verdict | None, stage: Stage, *, blocked: bool
) -> None:
    """Dispatch the verdict as a custom event, where anybody listens."""
    if verdict is not None and run.handlers:
        dispatch_custom_event(
            EVENT, event(verdict, stage, blocked=blocked), config=patch_config(config, callbacks=run.get_child())
        )


async def atell(
    run: AsyncCallbackManagerForChainRun, config: RunnableConfig, verdict: Verdict | None, stage: Stage, *, blocked: bool
) -> None:
    """`tell` for event loops."""
    if verdict is not None and run.handlers:
        child = patch_config(config, callbacks=run.get_child())
        await adispatch_custom_event(EVENT, event(verdict, stage, blocked=blocked), config=child)


def is_guard(value: object, target: str, option: str) -> None:
    """Check that an option is a guard for prompts or for answers.

    Raises:
        ConfigurationError: it is not.
    """
    if not (callable(getattr(value, "check", None)) or callable(getattr(value, "acheck", None))):
        raise ConfigurationError(
            f"{option} is {type(value).__name__}: pass a mlpm_guard.Guard, or anything with its check or acheck"
        )
    judged = getattr(value, "target", target)
    if judged != target:
        raise ConfigurationError(f'{option} judges with target="{judged}"; this needs a guard with target="{target}"')


def identity(guard: object) -> Mapping[str, Any]:
    """What tells a guard's judgement from another's: part of the key of LLM caches."""
    if guard is None:
        return {}
    options = {name: getattr(guard, name, None) for name in ("threshold", "mode", "on_error", "timeout", "max_chars")}
    # Options of the reading, which only the guard itself uses.
    reading = {name: getattr(guard, name, None) for name in ("_window", "_normalise", "_fragment_margin")}
    decided = _decisions(guard) if isinstance(guard, Guard) else {}
    return {"guard": getattr(guard, "bundle_id", None) or _name(guard), **options, **reading, **decided}


def _decisions(guard: Guard) -> dict[str, Any]:
    """What decides besides the score. Rules hold phrases, which have no business in a cache's keys."""
    rules = None if guard.rules is None else guard.rules.saved().model_dump_json()
    return {
        "rules": None if rules is None else hashlib.sha256(rules.encode()).hexdigest(),
        "review": None if guard.review is None else asdict(guard.review),
        "policy": {name: asdict(each) for name, each in sorted(guard.category_policy.items())},
    }


def _name(guard: object) -> str:
    """A name for what was not saved: of this fit, of these categories, and of this process only."""
    model = getattr(guard, "_model", None) if getattr(guard, "reads_states", False) else None
    parts = [guard] if model is None else [model.scorer, model.categories]
    return "-".join([type(guard).__name__, *map(_number, parts)])


def _number(part: object) -> str:
    """A number that no other object of this process has, or had."""
    key = id(part)
    try:
        with _numbers_lock:
            known = _numbers.get(key)
            if known is None or known[0]() is not part:
                reference = weakref.ref(part, lambda _: _numbers.pop(key, None))
                known = _numbers[key] = (reference, next(_unnamed))
            return str(known[1])
    except TypeError:  # cannot be referred to weakly
        return f"at {key}"


def _check(guard: Any, conversations: Sequence[Turns]) -> Sequence[object]:
    if len(conversations) == 1 and callable(getattr(guard, "check", None)):
        return [guard.check(conversations[0])]
    if not conversations:
        return []
    if callable(getattr(guard, "check_batch", None)):
        return list(guard.check_batch(conversations))
    if not callable(getattr(guard, "check", None)):
        raise ConfigurationError(f"{type(guard).__name__} has acheck only: use the async methods, or a guard with check")
    return [guard.check(each) for each in conversations]


async def _acheck(guard: Any, conversations: Sequence[Turns]) -> Sequence[object]:
    if not conversations:
        return []
    if callable(getattr(guard, "acheck", None)):
        if len(conversations) == 1:
            return [await guard.acheck(conversations[0])]
        if callable(getattr(guard, "acheck_batch", None)):
            return list(await guard.acheck_batch(conversations))
        return list(await asyncio.gather(*(guard.acheck(each) for each in conversations)))
    return await asyncio.to_thread(_check, guard, conversations)


def _regroup(groups: Sequence[Sequence[Turns]], verdicts: Sequence[Verdict]) -> list[Verdict | None]:
    rest = iter(verdicts)
    found: list[Verdict | None] = []
    for group in groups:
        worst: Verdict | None = None
        for verdict in itertools.islice(rest, len(group)):
            worst = verdict if worst is None else worse(worst, verdict)
        found.append(worst)
    return found
