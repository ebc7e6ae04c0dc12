"""What dynamic sampling decides from outcomes: how many to draw, what to keep, what it cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.rollout.dynamic_sampling import (
    GroupOutcome,
    cost_facts,
    cost_text,
    group_outcomes,
    groups_kept,
    groups_to_add,
)

OUTCOMES = st.builds(
    GroupOutcome,
    varied=st.booleans(),
    solved=st.sampled_from(["always", "never", "in_part"]),
    completions=st.just(4),
    failed=st.just(0),
    tokens=st.integers(1, 50),
)


@given(outcomes=st.lists(OUTCOMES, min_size=1, max_size=40), wanted=st.integers(1, 12))
def test_decisions(outcomes: list[GroupOutcome], wanted: int) -> None:
    accepted = [group for group, outcome in enumerate(outcomes) if outcome.varied]
    missing = max(0, wanted - len(accepted))
    more = groups_to_add(outcomes, wanted)
    assert missing <= more <= wanted and (more > 0) == (missing > 0)
    if 0 < more < wanted:
        share = len(accepted) / len(outcomes)
        assert more - 1 < missing / share + 1e-9 and more >= missing / share - 1e-9
    kept = groups_kept(outcomes, wanted)
    assert len(kept) == min(wanted, len(outcomes))
    assert kept >= set(accepted[:wanted])
    filled = sorted(kept - set(accepted))
    others = [group for group in range(len(outcomes)) if group not in accepted]
    assert filled == others[: len(filled)] and (not filled or len(accepted) < wanted)
    facts = cost_facts(outcomes, kept, 2)
    assert facts["filled"] == len(filled)
    assert facts["surplus"] == len(accepted) - len(kept & set(accepted))
    equal = sum(facts[name] for name in ("always_solved", "never_solved", "otherwise_equal"))
    assert equal + facts["groups_with_variance"] == facts["groups_sampled"] == len(outcomes)
    assert facts["groups_rejected"] == len(outcomes) - len(kept)


def test_outcomes_of_groups() -> None:
    found = group_outcomes(
        [0, 0, 1, 1, 2, 2, 3, 3],
        [1.0, 0.0, 1.0, 1.0, 0.0, None, None, None],
        ["correct", "wrong", "correct", "correct", "no_answer", *["infra_error"] * 3],
        list(range(8)),
    )
    assert [one.varied for one in found] == [True, False, False, False]
    assert [one.solved for one in found] == ["in_part", "always", "never", "in_part"]
    assert [one.failed for one in found] == [0, 0, 1, 2]
    assert [one.tokens for one in found] == [1, 5, 9, 13]


def test_the_cost_in_words() -> None:
    facts = {"extra_rounds": 2, "groups_sampled": 41, "groups_rejected": 9}
    assert cost_text(facts | {"rejected_completion_tokens": 219}, 1000) == (
        "2 extra rounds, 41 groups drawn for 32: 22 % of the tokens rejected"
    )
