"""Checks of all prompts as the model will see them, before anything is sampled.

`prepare` makes them, so that no prompt stops a run at night: each must render, must consist of
tokens that the model has, and must leave room for the longest completion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.config import Recipe
from common.console import track, warn
from common.errors import UserError
from common.rollout.prompts import SamplingPolicy
from common.tasks.prompts import Messages, Prompt
from common.tasks.records import Faults
from common.tasks.sources import Prompts


def check_prompts(policy: SamplingPolicy, recipe: Recipe, prompts: Prompts) -> list[str]:
    """Render all prompts and check them; warn of control tokens and of text that is lost.

    Returns:
        What is no fault but ought to be known: how many prompts will be left out.

    Raises:
        UserError: a prompt cannot be rendered, has a token beyond the model's embedding, or leaves
            no room for an answer.
    """
    faults = Faults()
    both = [*prompts.train, *prompts.eval]
    lengths: list[int] = []
    beyond: dict[int, list[Prompt]] = {}
    for prompt in track(both, "check prompts", len(both), "prompts"):
        try:
            ids = _ids(policy, prompt.messages)
        except UserError as error:
            faults.add(prompt.where, str(error))
            continue
        lengths.append(len(ids))
        for token in {token for token in ids if token >= policy.config.vocab_size}:
            beyond.setdefault(token, []).append(prompt)
    faults.raise_any()
    faults.lines += [_beyond_vocabulary(policy, token, found) for token, found in beyond.items()]
    count = len(prompts.train)
    for split, part in (("training", slice(count)), ("evaluation", slice(count, None))):
        _check_room(policy, recipe, split, both[part], lengths[part], faults)
    faults.raise_any()
    _check_question_is_rendered(policy, prompts.train[0])
    _warn_of_lost_text(policy, prompts.train[0])
    _warn_of_control_tokens(policy, both)
    return faults.notices


def _ids(policy: SamplingPolicy, messages: Messages) -> list[int]:
    """Return the token ids of a prompt.

    Raises:
        UserError: the chat template refuses the messages, or there is no token.
    """
    ids = policy.render({"messages": messages}).ids
    if not ids:
        shown = messages[-1]["content"][:80]
        raise UserError(f"{policy.policy_dir}: its tokenizer makes no tokens of {shown!r}")
    return ids


def _beyond_vocabulary(policy: SamplingPolicy, token: int, prompts: Sequence[Prompt]) -> str:
    """Return what is wrong with a token that the tokenizer has and the model has not."""
    text = policy.tokenizer.convert_ids_to_tokens(token)
    return (
        f"{policy.policy_dir}: its tokenizer gives the token {text!r} the id {token}, but the "
        f"model has {policy.config.vocab_size} tokens; it is in {len(prompts)} prompts, the first "
        f"at {prompts[0].where}. Call model.resize_token_embeddings(len(tokenizer)) and save both, "
        "or take the token out of the data, the chat template and [prompt]"
    )


def _check_room(
    policy: SamplingPolicy,
    recipe: Recipe,
    split: str,
    prompts: Sequence[Prompt],
    lengths: Sequence[int],
    faults: Faults,
) -> None:
    """Add a fault or a notice if some prompts leave no room for the longest completion."""
    key, limit = "rollout.max_completion_tokens", recipe.rollout.max_completion_tokens
    if split == "evaluation" and recipe.evaluate.max_completion_tokens:
        key, limit = "evaluate.max_completion_tokens", recipe.evaluate.max_completion_tokens
    long = [i for i, length in enumerate(lengths) if not policy.has_room(length, limit)]
    if not long:
        return
    longest = max(long, key=lambda i: lengths[i])
    context = policy.config.max_position_embeddings
    what = (
        f"{len(long)} of {len(prompts)} {split} prompts leave no room for {key} = {limit} in the "
        f"model's context of {context} tokens; the longest has {lengths[longest]} tokens "
        f"({prompts[longest].where})"
    )
    room = context - lengths[longest]
    shorter = f"set {key} to {room} or less" if room > 0 else "take a model of a longer context"
    if len(long) == len(prompts):
        faults.add("data", f"{what}; {shorter}")
    elif recipe.rollout.on_long == "error":
        drop = 'or leave such prompts out with rollout.on_long = "drop"'
        faults.add("data", f"{what}; {shorter}, {drop}")
    else:
        faults.notices.append(f'data: {what}; they are left out (rollout.on_long = "drop")')


def _check_question_is_rendered(policy: SamplingPolicy, prompt: Prompt) -> None:
    """Refuse a chat template that writes the same prompt whatever is asked."""
    last = prompt.messages[-1]
    other = [*prompt.messages[:-1], last | {"content": last["content"] + " Why?"}]
    if _ids(policy, prompt.messages) == _ids(policy, other):
        raise UserError(
            f"{policy.policy_dir}: its chat template leaves the question out of the prompt; mend "
            'chat_template, or use prompt.template = "r1_zero"'
        )


def _warn_of_lost_text(policy: SamplingPolicy, prompt: Prompt) -> None:
    ids = policy.tokenizer(prompt.question, add_special_tokens=False)["input_ids"]
    text = str(policy.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    if text.strip() != prompt.question.strip():
        warn(
            f"{policy.policy_dir}: its tokenizer does not give back the text of a prompt: "
            f"{prompt.question[:80]!r} becomes {text[:80]!r}, and rules judge such text"
        )


def _warn_of_control_tokens(policy: SamplingPolicy, prompts: Sequence[Prompt]) -> None:
    """Warn if there are texts of the data in which the tokenizer finds control tokens."""
    added = policy.tokenizer.added_tokens_decoder
    special = {token.content: id for id, token in added.items() if token.special}
    written = sorted((content for content in special if content.strip()), key=len, reverse=True)
    if not written:
        return
    pattern = re.compile("|".join(map(re.escape, written)))
    found: list[tuple[str, Prompt]] = []
    for prompt in prompts:
        text = "\n".join(message["content"] for message in prompt.messages)
        match = pattern.search(text)
        # A tokenizer may also take them for text (split_special_tokens).
        if match and special[match[0]] in policy.tokenizer(text)["input_ids"]:
            found.append((match[0], prompt))
    if found:
        token, first = found[0]
        warn(
            f"{len(found)} prompts contain control tokens of the model such as {token!r}, the "
            f"first at {first.where}; it reads them as ends of turns and the like, not as text: "
            f"leave them out, or write them otherwise, as {token[0]} {token[1:]}"
        )
