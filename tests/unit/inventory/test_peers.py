from __future__ import annotations

import pytest

from contracts import errors
from services.inventory import peers


def raising(problem: Exception) -> dict[str, object]:
    raise problem


def test_facts_end_an_ask_well() -> None:
    outcome = peers.attempt("look_domain", lambda: {"free": 1})
    assert (outcome.facts, outcome.problem) == ({"free": 1}, None)
    outcome.give()


@pytest.mark.parametrize(
    "problem", [errors.NoAnswer(service="a", method="b", seconds=1), errors.StorageTimeout(path="/")]
)
def test_no_word_from_the_agent_leaves_the_end_unknown(problem: errors.Problem) -> None:
    outcome = peers.attempt("look_domain", lambda: raising(problem))
    assert (outcome.unknown, outcome.refused) == (problem, None)
    with pytest.raises(type(problem)):
        outcome.give()


@pytest.mark.parametrize("problem", [errors.NoSpace(), errors.Late(), errors.BadRequest(errors={})])
def test_a_refusal_means_that_nothing_was_done(problem: errors.Problem) -> None:
    outcome = peers.attempt("look_domain", lambda: raising(problem))
    assert (outcome.unknown, outcome.refused) == (None, problem)


def test_a_repeat_that_comes_too_late_says_nothing_about_the_ask_before_it() -> None:
    outcome = peers.attempt("look_domain", lambda: raising(errors.Late()), again=True)
    assert (type(outcome.unknown), outcome.refused) == (errors.Late, None)


def test_a_fault_of_ours_is_not_taken_for_an_answer() -> None:
    with pytest.raises(ZeroDivisionError):
        peers.attempt("look_domain", lambda: raising(ZeroDivisionError()))
