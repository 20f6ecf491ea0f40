"""Allow list and block list: what is decided before a model is asked, for what cannot wait for a refit.

Entries are the user's own policy. No `repr`, error or verdict shows one; a verdict names its list and its index or name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from mlpm_guard.conversation import Conversation, normalise
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.verdict import RuleMatch, Target

Entry: TypeAlias = "str | re.Pattern[str]"
Entries: TypeAlias = "Iterable[Entry] | Mapping[str, Entry]"

_INSTRUCTIONS = frozenset({"system", "developer"})
_FLAGS = re.ASCII | re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE | re.UNICODE
_LONGEST_NAME = 100
# Han, kana, Thai, Lao, Burmese and Khmer are written without spaces; a phrase in them is found inside a run of letters.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_IN_WORD = rf"[^\W_{_SPACELESS}]"
_WORD_CHARACTER = re.compile(_IN_WORD)


class SavedRule(BaseModel):
    """An entry as a manifest keeps it."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str | None = None
    phrase: str | None = None
    regex: str | None = None
    flags: int = 0


class SavedRules(BaseModel):
    """Both lists as a manifest keeps them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    allow: tuple[SavedRule, ...] = ()
    block: tuple[SavedRule, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry.

    Attributes:
        entry: its index in its list, or its name.
        source: what the user gave.
        plain: the folded phrase; None for a regular expression.
        pattern: what is searched with in text as it came.
        pattern_undisguised: the same in normalised text.
    """

    entry: int | str
    source: Entry = field(repr=False)
    plain: str | None = field(repr=False)
    pattern: re.Pattern[str] = field(repr=False)
    pattern_undisguised: re.Pattern[str] = field(repr=False)

    def found_in(self, text: str, folded: str, *, undisguised: bool) -> bool:
        pattern = self.pattern_undisguised if undisguised else self.pattern
        return pattern.search(text if self.plain is None else folded) is not None

    def is_all_of(self, text: str, folded: str) -> bool:
        return self.pattern.fullmatch(text.strip()) is not None if self.plain is None else folded == self.plain

    def saved(self) -> SavedRule:
        name = self.entry if isinstance(self.entry, str) else None
        if isinstance(self.source, str):
            return SavedRule(name=name, phrase=self.source)
        return SavedRule(name=name, regex=self.source.pattern, flags=self.source.flags & _FLAGS)


class Rules:
    """Texts that a guard decides without asking its model.

    An entry is a phrase, or a compiled regular expression. Phrases ignore case and the width of white space. A prompt, or an
    answer, is blocked if a phrase of the block list stands in it as whole words, or if one of its expressions finds something,
    in the text as it came or in its normalised form. It is allowed if a phrase of the allow list is the whole of it, or one of
    its expressions matches the whole of it, as it came. Blocking wins.

    Only the turn that is judged is looked at. A prompt is allowed only where it stands alone: behind other turns, beside an
    image, or in front of an answer that was begun or of further instructions, it may mean anything, and the model is asked.

    A regular expression that backtracks without end cannot be interrupted by a time-out. The longest text that one sees is the
    guard's `max_chars`; write expressions without nested repetitions.

    Args:
        allow: entries, or a mapping of names to entries.
        block: the same.

    Raises:
        ConfigurationError: an entry is no phrase and no compiled expression, is empty, or matches the empty text; names the
            list and the entry's index or name.
    """

    def __init__(self, *, allow: Entries = (), block: Entries = ()) -> None:
        self._allow = _read("allow", allow)
        self._block = _read("block", block)

    @classmethod
    def from_saved(cls, saved: SavedRules) -> Rules:
        """Rules from a manifest.

        Raises:
            ConfigurationError: an entry is impossible, or its expression is invalid; names the list and its index or name.
        """
        rules = cls()
        rules._allow, rules._block = _parse("allow", saved.allow), _parse("block", saved.block)
        return rules

    def saved(self) -> SavedRules:
        """Both lists for a manifest."""
        return SavedRules(allow=tuple(rule.saved() for rule in self._allow), block=tuple(rule.saved() for rule in self._block))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._allow)} allowed, {len(self._block)} blocked)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rules) and self.saved() == other.saved()

    def __hash__(self) -> int:
        return hash(self.saved())

    def match(self, conversation: Conversation, target: Target) -> RuleMatch | None:
        """The entry that decides a conversation; None where the model is to be asked.

        Raises:
            InputError: there is no turn to judge.
        """
        index = conversation.turn_index(target)
        text = conversation.messages[index].content
        folded = _folded(text)
        for rule in self._block:
            if rule.found_in(text, folded, undisguised=False):
                return RuleMatch(kind="block", entry=rule.entry, form="raw")
        if self._block and (plain := normalise(text)) != text:
            folded_plain = _folded(plain)
            for rule in self._block:
                if rule.found_in(plain, folded_plain, undisguised=True):
                    return RuleMatch(kind="block", entry=rule.entry, form="normalised")
        if target == "prompt" and (conversation.not_judged or not _alone(conversation, index)):
            return None
        for rule in self._allow:
            if rule.is_all_of(text, folded):
                return RuleMatch(kind="allow", entry=rule.entry, form="raw")
        return None


def _alone(conversation: Conversation, index: int) -> bool:
    return not any(
        message.content.strip() and (message.role not in _INSTRUCTIONS or at > index)
        for at, message in enumerate(conversation.messages)
        if at != index
    )


def _read(kind: Literal["allow", "block"], entries: object) -> tuple[_Rule, ...]:
    if isinstance(entries, Mapping):
        for name in entries:
            if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= _LONGEST_NAME):
                raise ConfigurationError(
                    f"{kind}: a name of an entry is a printable text of at most {_LONGEST_NAME} characters"
                )
        return tuple(_rule(kind, name, source) for name, source in entries.items())
    if isinstance(entries, (str, bytes, re.Pattern)) or not isinstance(entries, Iterable):
        raise ConfigurationError(f"{kind} is {type(entries).__name__}: give a list of phrases and compiled regular expressions")
    return tuple(_rule(kind, index, source) for index, source in enumerate(entries))


def _rule(kind: Literal["allow", "block"], entry: int | str, source: object) -> _Rule:
    which = f"{kind} entry {entry}"
    if isinstance(source, re.Pattern) and isinstance(source.pattern, str):
        if source.search("") is not None:
            raise ConfigurationError(f"{which} matches the empty text, and so could match anything: make it ask for something")
        return _Rule(entry, source, None, source, source)
    if not isinstance(source, str):
        raise ConfigurationError(f"{which} is {type(source).__name__}: give a phrase, or re.compile(...) of a text")
    plain, undisguised = _folded(source), _folded(normalise(source))
    if not plain or not undisguised:
        raise ConfigurationError(f"{which} is blank")
    return _Rule(entry, source, plain, _as_words(plain), _as_words(undisguised))


def _parse(kind: Literal["allow", "block"], saved: tuple[SavedRule, ...]) -> tuple[_Rule, ...]:
    rules = []
    for index, each in enumerate(saved):
        entry = index if each.name is None else each.name
        if (each.phrase is None) == (each.regex is None):
            raise ConfigurationError(f"{kind} entry {entry} is not either a phrase or a regular expression")
        source: Entry
        if each.regex is None:
            assert each.phrase is not None
            source = each.phrase
        else:
            try:
                source = re.compile(each.regex, each.flags & _FLAGS)
            except (re.error, ValueError, OverflowError, RecursionError) as error:
                raise ConfigurationError(
                    f"{kind} entry {entry} is no valid regular expression ({type(error).__name__})"
                ) from None
        rules.append(_rule(kind, entry, source))
    return tuple(rules)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _as_words(phrase: str) -> re.Pattern[str]:
    """The phrase as whole words: at an end that is a letter or a digit no other may follow."""
    before = rf"(?<!{_IN_WORD})" if _WORD_CHARACTER.match(phrase[0]) else ""
    after = rf"(?!{_IN_WORD})" if _WORD_CHARACTER.match(phrase[-1]) else ""
    return re.compile(before + re.escape(phrase) + after)
