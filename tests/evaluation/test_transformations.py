import base64
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlpm_guard.conversation import normalise
from mlpm_guard.errors import ConfigurationError
from mlpm_guard.evaluation import transformations
from mlpm_guard.evaluation.transformations import (
    PADDING,
    ROLE_PLAYS,
    TRANSFORMATIONS,
    base64_wrapped,
    homoglyphs,
    leet,
    mixed_case,
    padded_after,
    padded_before,
    role_play,
    spaced,
    transformation,
    typos,
    upper_case,
    zero_width,
)

PROMPT = "How do I repair the hinge of an old wardrobe without drilling new holes into it?"
any_text = st.text(max_size=80)
plain_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80)
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("each", TRANSFORMATIONS, ids=lambda each: each.name)
@settings(max_examples=40, deadline=None)
@given(text=any_text, seed=seeds)
def test_a_result_depends_on_text_and_seed_alone(each, text, seed):
    assert each.apply(text, seed) == each.apply(text, seed)


@pytest.mark.parametrize("each", TRANSFORMATIONS, ids=lambda each: each.name)
def test_every_transformation_changes_an_ordinary_prompt(each):
    assert each.apply(PROMPT, 0) != PROMPT


@pytest.mark.parametrize("each", [each for each in TRANSFORMATIONS if each.name != "upper_case"], ids=lambda each: each.name)
def test_another_seed_gives_another_result(each):
    assert len({each.apply(PROMPT, seed) for seed in range(8)}) > 1


def test_results_are_the_same_in_another_process():
    program = (
        "from mlpm_guard.evaluation.transformations import TRANSFORMATIONS\n"
        f"print([each.apply({PROMPT!r}, 7) for each in TRANSFORMATIONS])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, encoding="utf-8").stdout
    assert shown.strip() == repr([each.apply(PROMPT, 7) for each in TRANSFORMATIONS])


@given(text=any_text, seed=seeds)
def test_leet_touches_only_letters_that_it_has_a_sign_for(text, seed):
    result = leet(text, seed)
    assert len(result) == len(text)
    for before, after in zip(text, result, strict=True):
        assert after == before or after in transformations._LEET[before.lower()]


@given(text=plain_text, seed=seeds)
def test_homoglyphs_leave_length_and_everything_but_letters(text, seed):
    result = homoglyphs(text, seed)
    assert len(result) == len(text)
    assert all(
        after == before or (before.isalpha() and not after.isascii()) for before, after in zip(text, result, strict=True)
    )


@given(text=plain_text, seed=seeds)
def test_characters_without_width_vanish_under_normalisation(text, seed):
    assert normalise(zero_width(text, seed)) == normalise(text)


@given(text=any_text, seed=seeds)
def test_spaced_letters_read_the_same_without_what_stands_between(text, seed):
    def letters(value):
        return re.sub(r"[\s.]", "", value)

    assert letters(spaced(text, seed)) == letters(text)


@given(text=plain_text, seed=seeds)
def test_typos_keep_a_words_letters_and_its_first_and_last(text, seed):
    before, after = text.split(" "), typos(text, seed).split(" ")
    assert len(before) == len(after)
    for one, two in zip(before, after, strict=True):
        assert set(one) == set(two)
        assert (one[:1], one[-1:]) == (two[:1], two[-1:])
        assert len(two) - len(one) in (0, 1)


@given(text=any_text, seed=seeds)
def test_base64_decodes_to_the_text(text, seed):
    templates = [template.split("{}") for template in transformations.DECODERS]
    wrapped = base64_wrapped(text, seed)
    inner = [wrapped[len(a) : len(wrapped) - len(b)] for a, b in templates if wrapped.startswith(a) and wrapped.endswith(b)]
    assert text in [base64.b64decode(each, validate=True).decode() for each in inner if re.fullmatch(r"[A-Za-z0-9+/]*=*", each)]


@given(text=plain_text, seed=seeds)
def test_case_changes_nothing_but_case(text, seed):
    assert upper_case(text, seed).lower() == text.lower()
    assert mixed_case(text, seed).lower() == text.lower()


@given(text=st.text(min_size=1, max_size=80), seed=seeds)
def test_a_role_play_holds_the_prompt_as_it_is_within_one_of_the_wrappers(text, seed):
    result = role_play(text, seed)
    assert result in [wrapper.replace("{}", text) for wrapper in ROLE_PLAYS]


def test_braces_in_a_prompt_stay_braces():
    assert "print({}, '{0}')" in role_play("print({}, '{0}')", 0)


@settings(deadline=None)
@given(text=st.text(min_size=1, max_size=80), seed=seeds, words=st.integers(1, 600))
def test_padding_stands_before_or_after_the_prompt_and_is_long_enough(text, seed, words):
    before = padded_before(text, seed, words=words)
    assert before.endswith(f" {text}")
    after = padded_after(text, seed, words=words)
    assert after.startswith(f"{text} ")
    for padding in (before.removesuffix(text), after.removeprefix(text)):
        assert words <= len(padding.split()) < words + max(len(each.split()) for each in PADDING)


def test_padding_does_not_repeat_a_sentence_before_all_were_used():
    padding = padded_before("x", 3, words=250).removesuffix(" x")
    assert max(padding.count(sentence) for sentence in PADDING) - min(padding.count(sentence) for sentence in PADDING) <= 1


@pytest.mark.parametrize("templates", [transformations.DECODERS, ROLE_PLAYS])
def test_templates_have_one_place_for_the_prompt_and_are_all_different(templates):
    assert all(template.count("{}") == 1 for template in templates)
    assert len(set(templates)) == len(templates)


def test_names_are_unique_and_lead_to_their_transformation():
    assert len({each.name for each in TRANSFORMATIONS}) == len(TRANSFORMATIONS)
    assert all(transformation(each.name) is each for each in TRANSFORMATIONS)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(ConfigurationError, match=r"known are leet, .*padded_after"):
        transformation("rot13")
