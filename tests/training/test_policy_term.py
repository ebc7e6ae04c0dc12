"""The recipe's own policy term, tried before training: what its contract refuses, and how."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from support import own_terms

from common.config import ObjectiveConfig
from common.errors import UserError
from common.objective.loss import POLICY_TERMS
from common.training.policy_term import ADVANTAGES, LOG_RATIOS, load_policy_term

FILE = own_terms.__file__


def own(name: str, **settings) -> ObjectiveConfig:
    return ObjectiveConfig(policy_term=name, **settings)


@pytest.mark.parametrize("name", ["soft_gate", "clip_again", "cispo_again"])
@pytest.mark.parametrize("level", ["token", "sequence", "sequence_sum"])
def test_terms_that_keep_the_contract_are_taken(name: str, level: str) -> None:
    config = own(f"support.own_terms:{name}", ratio_level=level)
    assert load_policy_term(config) is getattr(own_terms, name)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("name", POLICY_TERMS)
def test_the_built_in_terms_would_pass(name: str, dual_clip: float | None) -> None:
    """So the contract asks for nothing that the project's own terms do not keep."""
    config = own(f"common.objective.loss:{name}_term", dual_clip=dual_clip)
    assert load_policy_term(config) is POLICY_TERMS[name]


@pytest.mark.parametrize("name", POLICY_TERMS)
def test_a_built_in_name_is_no_function_of_the_recipe(name: str) -> None:
    assert load_policy_term(own(name)) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:term", r"'no_such_module' cannot be imported: ModuleNotFoundError"),
        (
            "support.own_terms:missing",
            r"'support\.own_terms' has no function 'missing'; define it in \S+own_terms\.py",
        ),
        ("support.own_terms:NUMBER", r"'support\.own_terms' has no function 'NUMBER'"),
    ],
)
def test_functions_that_are_not_there_are_named(name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^objective.policy_term = '{name}': {said}"):
        load_policy_term(own(name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", r"gives None for tokens of torch.float32 \[9, 5\] on cpu; return the loss"),
        ("mean", r"gives torch.float32 \[\] on cpu for tokens of .*in their shape"),
        ("in_float64", r"gives torch.float64 \[9, 5\] on cpu for tokens of torch.float32"),
        ("detached", r"has no gradient to logprobs; leave ratio or logprobs undetached"),
        ("flat_at_one", r"has no gradient to logprobs at ratio 1, where every iteration begins"),
        ("objective", r"makes a token with positive advantage less likely .*return a loss"),
        ("infinite", r"a loss of inf at ratio exp\(20\) and advantage -2, .*bound the ratio"),
        ("steep", r"a gradient to logprobs of (nan|-?inf) at ratio exp\(0\)"),
        ("without_advantage", r"a token with advantage 0 has a loss .*multiply by advantages"),
        ("over_batch", r"a token alone comes to .*use no mean, sum, maximum"),
        ("by_position", r"a token alone comes to .*position"),
        ("at_random", r"a token alone comes to .*random"),
        ("in_place", r"changes a tensor that it was given; write no operation in place"),
        ("three_arguments", r"TypeError when called with \(ratio, logprobs, advantages, config\)"),
    ],
)
def test_what_breaks_the_contract_is_refused(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        load_policy_term(own(f"support.own_terms:{name}"))
    assert str(refused.value).startswith(
        f"objective.policy_term = 'support.own_terms:{name}' ({FILE}): "
    )


def test_a_module_that_does_not_compile_is_a_fault_of_its_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_written.py").write_text("def term(ratio,\n")
    with pytest.raises(UserError, match=r"'half_written' cannot be imported: SyntaxError"):
        load_policy_term(own("half_written:term"))


def test_terms_are_tried_on_the_tokens_of_the_first_step_and_on_all_signs() -> None:
    assert 0.0 in LOG_RATIOS and {-1, 0, 1} == {(a > 0) - (a < 0) for a in ADVANTAGES}
    assert max(LOG_RATIOS) == -min(LOG_RATIOS) == 20


def test_a_term_is_tried_with_the_settings_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bounded.py").write_text(
        "def term(ratio, logprobs, advantages, config):\n"
        "    return -ratio.clamp(max=config.dual_clip) ** 5 * advantages\n"
    )
    load_policy_term(own("bounded:term", dual_clip=3.0))
    with pytest.raises(UserError, match="a loss of inf"):
        load_policy_term(own("bounded:term", dual_clip=1e9))


def test_versions_are_hashes_of_files() -> None:
    from common.training.policy_term import policy_term_versions

    expected = hashlib.sha256(Path(FILE).read_bytes()).hexdigest()
    name = "support.own_terms:soft_gate"
    assert policy_term_versions(own(name)) == {f"policy_term: {name}": expected}
    assert policy_term_versions(ObjectiveConfig()) == {}


def test_the_name_alone_imports_nothing() -> None:
    """A recipe is read by every command; only training has to have the module."""
    own("never_imported:term")
    assert "never_imported" not in sys.modules
    assert torch.is_grad_enabled()
