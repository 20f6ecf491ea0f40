"""What is done about categories: names, thresholds and actions. No model."""

from __future__ import annotations

import pickle

import pytest

from mlpm_guard import Action, CategoryError, CategoryPolicy, ConfigurationError
from mlpm_guard.category_policy import categorise, read_policy, require_known

CHANCES = {"drugs": 0.9, "fraud": 0.6, "legal": 0.4}


@pytest.mark.parametrize(
    ("policy", "unsafe", "flagged_by", "category", "action"),
    [
        ({}, False, (), None, "allow"),
        ({}, True, (), "drugs", "block"),
        ({"drugs": "allow"}, True, (), "drugs", "allow"),
        ({"drugs": "review"}, True, (), "drugs", "review"),
        ({"fraud": "allow"}, True, (), "drugs", "block"),
        ({"legal": CategoryPolicy(threshold=0.3)}, False, ("legal",), "legal", "block"),
        ({"legal": CategoryPolicy("review", 0.3)}, False, ("legal",), "legal", "review"),
        ({"legal": CategoryPolicy("allow", 0.3)}, False, ("legal",), "legal", "allow"),
        ({"legal": CategoryPolicy("review", 0.3), "drugs": "allow"}, True, ("legal",), "drugs", "review"),
        ({"legal": CategoryPolicy("allow", 0.3)}, True, ("legal",), "drugs", "block"),
        ({"legal": CategoryPolicy(threshold=0.4)}, False, ("legal",), "legal", "block"),
        ({"legal": CategoryPolicy(threshold=0.41)}, False, (), None, "allow"),
        (
            {"legal": CategoryPolicy("review", 0.3), "fraud": CategoryPolicy("block", 0.5)},
            False,
            ("fraud", "legal"),
            "fraud",
            "block",
        ),
    ],
)
def test_the_strictest_action_of_all_that_flags_holds(
    policy: dict[str, object], unsafe: bool, flagged_by: tuple[str, ...], category: str | None, action: str
) -> None:
    found = categorise(read_policy(policy), CHANCES, unsafe=unsafe)
    assert found.flagged_by == flagged_by
    assert found.category == category
    assert found.action is Action(action)


def test_an_unsafe_text_without_a_confident_category_has_none_and_is_blocked() -> None:
    policy = read_policy({"drugs": "allow", "fraud": "allow"})
    found = categorise(policy, {"drugs": 0.29, "fraud": 0.2}, unsafe=True)
    assert found.category is None
    assert found.action is Action.BLOCK
    assert categorise(policy, {}, unsafe=True).action is Action.BLOCK


@pytest.mark.parametrize("action", ["allow", "review"])
def test_a_name_that_is_less_likely_than_not_does_not_spare_a_text(action: str) -> None:
    policy = read_policy({"drugs": action})
    found = categorise(policy, {"drugs": 0.49}, unsafe=True)
    assert found.category == "drugs"
    assert found.action is Action.BLOCK
    assert categorise(policy, {"drugs": 0.5}, unsafe=True).action is Action(action)


@pytest.mark.parametrize(
    "value", [["drugs"], "drugs", {"drugs": "ignore"}, {"drugs": None}, {"drugs": 0.5}, {"drugs": {"action": "block"}}]
)
def test_what_is_no_policy_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match="policy"):
        read_policy(value)


@pytest.mark.parametrize("name", ["", "other", "safe", "unsafe", 3])
def test_names_that_no_category_can_have_are_refused(name: object) -> None:
    with pytest.raises(CategoryError):
        read_policy({name: "block"})


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), True, "0.5"])
def test_a_threshold_is_a_probability(threshold: object) -> None:
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        CategoryPolicy(threshold=threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize("action", ["ignore", "", None, 1])
def test_an_action_is_one_of_three(action: object) -> None:
    with pytest.raises(ConfigurationError, match="allow, review, block"):
        CategoryPolicy(action)  # type: ignore[arg-type]


def test_a_policy_about_unknown_categories_is_refused() -> None:
    require_known(read_policy({"drugs": "allow"}), ("drugs", "fraud"))
    with pytest.raises(CategoryError, match="weapons; it has: drugs, fraud"):
        require_known(read_policy({"weapons": "allow"}), ("drugs", "fraud"))


def test_a_policy_is_a_copy() -> None:
    given = {"drugs": "allow"}
    policy = read_policy(given)
    given["fraud"] = "allow"
    assert dict(policy) == {"drugs": CategoryPolicy("allow")}
    assert pickle.loads(pickle.dumps(CategoryPolicy("review", 0.3))) == CategoryPolicy("review", 0.3)
