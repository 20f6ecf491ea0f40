import re
from collections import Counter
from pathlib import Path

from mlpm_guard.bundles.fit_default import Row
from mlpm_guard.bundles.phrases import LONGEST, MESSAGES_OF, message, messages, minimal_pairs

ROWS = [
    *(Row(MESSAGES_OF, f"Set an alarm number {i}", 0) for i in range(40)),
    *(Row("letters", f"Write a letter to house {i}", 0) for i in range(40)),
    *(Row("harmful", f"Do the forbidden thing {i}", 1) for i in range(40)),
    Row("letters", "long " * LONGEST, 0),
]


def test_a_message_names_somebody_and_says_what_the_row_says() -> None:
    found = {message(row.text, 0) for row in ROWS[:80]}
    assert len(found) == 80
    for row in ROWS[:80]:
        text = message(row.text, 0)
        assert row.text[1:] in text
        assert len(text) > len(row.text) + 5
        assert not re.search(r"[{}]", text)
    assert message("Set an alarm", 0) == message("Set an alarm", 0)
    assert {message("Set an alarm", seed) for seed in range(20)} != {message("Set an alarm", 0)}


def test_messages_keep_labels_and_sources_and_leave_long_rows_out() -> None:
    found = list(messages(ROWS, seed=0))
    counts = Counter((copy.source, copy.label) for copy in found)
    assert counts == {(MESSAGES_OF, 0): 80, ("letters", 0): 40, ("harmful", 1): 40}
    assert {copy.transformation for copy in found} == {"message"}
    assert found == list(messages(ROWS[::-1], seed=0))


def test_pairs_are_whole_prompts_with_one_label_each() -> None:
    pairs = minimal_pairs(seed=0)
    labels: dict[str, set[int]] = {}
    for pair in pairs:
        labels.setdefault(pair.text.casefold(), set()).add(pair.label)
        assert not re.search(r"[{}]|\s{2}", pair.text)
        assert pair.text == pair.text.strip()
    assert all(len(found) == 1 for found in labels.values())
    assert len(labels) == len(pairs)
    counts = Counter(pair.label for pair in pairs)
    assert counts[0] > counts[1] > 1000
    assert pairs == minimal_pairs(seed=0)
    assert pairs != minimal_pairs(seed=1)


def test_openings_and_endings_stand_with_both_labels() -> None:
    """Otherwise an opening alone would tell the label."""
    pairs = minimal_pairs(seed=0)
    for opening in ("how do i make ", "how do i blow up ", "how do i get rid of ", "I'm going to "):
        assert {pair.label for pair in pairs if pair.text.startswith(opening)} == {0, 1}
    for deed in ("espionage", "price fixing", "cable theft"):
        assert {pair.label for pair in pairs if deed in pair.text} == {0, 1}


def test_no_pair_is_a_prompt_of_a_data_set(data: Path) -> None:
    from tests.test_benign_twins import prompts, words

    own = {words(pair.text): pair.text for seed in range(3) for pair in minimal_pairs(seed=seed)}
    assert [(place, own[words(text)]) for place, text in prompts(data / "eval") if words(text) in own] == []
