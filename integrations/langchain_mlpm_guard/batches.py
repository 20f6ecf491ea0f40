"""A batch on its way through a guarded chain, so that a sync and an async driver can share it. Does no judging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_mlpm_guard.judging import stops
from langchain_mlpm_guard.messages import Turns
from langchain_mlpm_guard.outcomes import Failure, readable, told
from mlpm_guard.errors import MlpmGuardError
from mlpm_guard.verdict import Verdict

if TYPE_CHECKING:
    from langchain_mlpm_guard.chains import GuardedChain


class Batch:
    """Items of a batch on their way: read, gated, answered, moderated."""

    def __init__(self, chain: GuardedChain, values: Sequence[Any]) -> None:
        self.results: list[Any] = [None] * len(values)
        self.open: list[int] = []
        self.prompts: list[list[Turns]] = []
        self.verdicts: dict[int, Verdict | None] = {}
        self.blocked = False
        self._chain = chain
        self._asked: dict[int, Turns] = {}
        self._outputs: dict[int, Any] = {}
        for index, value in enumerate(values):
            try:
                prompt, self._asked[index] = chain._read(value)
            except MlpmGuardError as error:
                self.results[index] = error
            else:
                self.open.append(index)
                self.prompts.append(prompt)

    def gated(self, verdicts: Sequence[Verdict | None]) -> None:
        """Verdicts on the prompts that could be read."""
        self.verdicts = dict(zip(self.open, verdicts, strict=True))
        for index, verdict in self.verdicts.items():
            if verdict is not None and stops(verdict, self._chain.on_review):
                self.results[index] = self._chain._refused(verdict, "prompt")
                self.open.remove(index)

    def answered(self, outputs: Sequence[Any]) -> None:
        """Outputs for the prompts that passed."""
        for index, output in zip(list(self.open), outputs, strict=True):
            self._outputs[index] = Failure(output) if isinstance(output, Exception) else output

    @property
    def to_judge(self) -> tuple[list[Turns], list[Any]]:
        """Prompts and outputs to moderate."""
        return [self._asked[index] for index in self.open], [readable(self._outputs[index]) for index in self.open]

    def moderated(self, verdicts: Sequence[Verdict | None]) -> dict[int, Verdict | None]:
        """Verdicts on the outputs, by item."""
        judged = dict(zip(self.open, verdicts, strict=True))
        for index, verdict in judged.items():
            output = self._outputs[index]
            if verdict is not None and stops(verdict):
                self.blocked = True
                self.results[index] = self._chain._refused(verdict, "response", output)
            elif isinstance(output, Failure):
                self.results[index] = output.error
            else:
                self.results[index] = told(output, self.verdicts[index], verdict)
        return judged
