"""Private interfaces are used where they are right; else the public way, by the same numbers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import REPOSITORY
from support.sampler_requests import ids_of, prompts_of, requests_of
from support.tiny_models import packed_outputs, random_completions, tiny_model
from torch import Tensor

from common import compat
from common.console import warn_once
from common.engines.engine import SamplingParams
from common.engines.native.sampler import Sampler
from common.modeling.linear import linear
from common.modeling.packing import pack

CHECKED = (compat.onednn_product, compat.cpu_flash_attention)


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Every check is made anew in each test, and forgotten after it."""
    for function in (*CHECKED, warn_once):
        function.cache_clear()
    yield
    for function in (*CHECKED, warn_once):
        function.cache_clear()


def missing(*_: Any, **__: Any) -> None:
    raise AttributeError("no such operator")


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, common.compat; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "rich", "numpy"}


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="there is nothing to be checked"
)
def test_what_is_right_is_used_and_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Here, with the versions that the suite runs with: or it would be slower and nobody knew."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for function in CHECKED:
        assert function() is not None
        assert function() is function()
    assert capsys.readouterr().err == ""
    assert torch.equal(torch.get_rng_state(), before)


def test_checks_do_not_depend_on_what_surrounds_them() -> None:
    with torch.inference_mode(), torch.device("meta"):
        assert compat.cpu_flash_attention() is not None
    for function in CHECKED:
        function.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            assert compat.cpu_flash_attention() is not None
    finally:
        torch.set_default_dtype(torch.float32)


def wrong(function: Any, which: int | None) -> Any:
    """`function`, but its result, or one tensor of it, is off by a thousandth."""

    def off(*args: Any, **how: Any) -> Any:
        found = function(*args, **how)
        if which is None:
            return found + 1e-3
        return tuple(x + 1e-3 * (index == which) for index, x in enumerate(found))

    return off


def outputs_and_gradients(model: Any) -> list[Tensor]:
    batch = pack(random_completions(1), tokens_per_pack=40)
    logprobs, entropy = packed_outputs(model, batch)
    loss = ((logprobs + entropy) * batch.target_mask).sum()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


BROKEN_FLASH = [
    ("__init__", None, "no such operator"),
    ("forward", 0, "gives other numbers"),
    ("forward", 1, "gives other numbers"),
    *(("backward", which, "gives other numbers") for which in range(3)),
]


@pytest.mark.parametrize(("method", "which", "reason"), BROKEN_FLASH)
def test_packs_without_the_flash_kernel(
    method: str,
    which: int | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Missing, or wrong in a single one of its results."""
    expected = outputs_and_gradients(tiny_model("qwen2_sliding"))
    compat.cpu_flash_attention.cache_clear()
    found = getattr(compat.FlashAttention, method)
    broken = missing if which is None else wrong(found, which)
    monkeypatch.setattr(compat.FlashAttention, method, broken)
    for _ in range(2):
        for ours, other in zip(
            outputs_and_gradients(tiny_model("qwen2_sliding")), expected, strict=True
        ):
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert reason in said
    assert "under dense masks, which is slower" in said


@pytest.mark.skipif(compat.onednn_product() is None, reason="torch without oneDNN")
@pytest.mark.parametrize("reason", ["no such operator", "gives other numbers"])
def test_products_without_onednn_s(
    reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(7, 24), torch.randn(40, 24), torch.randn(40)]

    def values_and_gradients() -> list[Tensor]:
        given = [leaf.clone().requires_grad_() for leaf in leaves]
        out = linear(*given)
        return [out, *torch.autograd.grad(out.square().sum(), given)]

    expected = values_and_gradients()
    compat.onednn_product.cache_clear()
    product = compat._OnednnProduct
    if reason == "no such operator":
        monkeypatch.setattr(product, "__init__", missing)
    else:
        monkeypatch.setattr(product, "__call__", wrong(product.__call__, None))
    for _ in range(2):
        for ours, other in zip(values_and_gradients(), expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-3)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert reason in said


def hide_attributes(patch: pytest.MonkeyPatch) -> None:
    """As if other packages had none of the attributes that `compat` asks for."""
    patch.setattr(compat, "getattr", lambda *_: None, raising=False)


def test_an_attention_that_cannot_be_read_becomes_eager(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = outputs_and_gradients(tiny_model("llama"))
    model = tiny_model("llama")
    assert compat.attention_implementation(model) == "sdpa"
    hide_attributes(monkeypatch)
    for _ in range(2):
        found = outputs_and_gradients(model)
        assert model.config._attn_implementation == "eager"
        for ours, other in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "set to 'eager'" in said


def test_a_sampler_of_such_a_model_samples_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = requests_of(prompts_of([4, 9]), 3)
    expected = Sampler(tiny_model("llama"), []).generate(requests, SamplingParams(5))
    hide_attributes(monkeypatch)
    found = Sampler(tiny_model("llama"), []).generate(requests, SamplingParams(5))
    assert ids_of(found) == ids_of(expected)
    assert capsys.readouterr().err.count("set to 'eager'") == 1


ORPHAN = "import subprocess; subprocess.Popen(['sleep', '3'], start_new_session=True)"


@pytest.mark.parametrize("given", [True, False])
def test_pipes_that_another_process_holds_are_closed(
    given: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that was left behind has them open when the one that is waited for has ended."""

    async def closed() -> bool:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ORPHAN, stdin=pipe, stdout=pipe
        )
        transport = process._transport  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            if not given:
                hide_attributes(patch)
            compat.close_pipes(process)
            compat.close_pipes(process)
        found = transport.is_closing()
        transport.close()
        return bool(found)

    assert asyncio.run(closed()) == given
    assert capsys.readouterr().err.count("Process._transport") == (0 if given else 1)
