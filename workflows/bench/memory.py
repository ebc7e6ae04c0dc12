"""Peak memory of the loss at a large vocabulary: chunks with recomputation against full logits.

Each side runs in a fresh process that makes the same hidden states and head, notes how much memory
it holds, and computes the gradient of the mean logprob with respect to both. The figure is the most
memory held beyond that: by the process on the CPU, by its allocator on a GPU. Both sides' gradients
are compared.

    python -m workflows.bench.memory ours 151936 2048 896 cpu gradients.safetensors
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.modeling.token_logprobs import Head, token_logprobs
from common.process import keep_freed_memory
from common.runs.manifest import peak_memory_bytes
from workflows.bench.measure import Bench, Measurement, rounds
from workflows.bench.process import result_of
from workflows.chain.launch import Command

TARGET = 5.0
"""Ours is to take at most 20 % of the memory."""
ROWS_COMPARED = 512
"""Rows of the head's gradient that are compared."""
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(bench: Bench) -> list[Measurement]:
    """Measure bytes beyond hidden states and head, and seconds, of both sides."""
    facts: dict[str, list[dict[str, float]]] = {"ours": [], "full logits": []}

    def run(side: str) -> float:
        vocabulary, tokens, hidden = bench.sizes.loss
        numbers = [str(number) for number in (vocabulary, tokens, hidden)]
        target = bench.scratch / f"gradients-{side.replace(' ', '-')}.safetensors"
        arguments = [side, *numbers, bench.device.type, str(target)]
        command = Command("workflows.bench.memory", arguments)
        facts[side].append(result_of(command, bench.threads, bench.device))
        return facts[side][-1]["bytes"]

    taken = rounds({side: partial(run, side) for side in facts}, bench.pairs)
    files = [bench.scratch / f"gradients-{side}.safetensors" for side in ("ours", "full-logits")]
    note = f"gradients differ by {relative_gap(*files):.1g} of the largest"
    vocabulary, tokens, hidden = bench.sizes.loss
    name = f"loss: {tokens} tokens, vocabulary {vocabulary}, hidden size {hidden}"
    seconds = {side: [fact["seconds"] for fact in found[1:]] for side, found in facts.items()}
    other = "full logits"
    peak = Measurement(
        "memory", f"{name}, peak", other, "bytes", taken["ours"], taken[other], TARGET, note=note
    )
    return [
        peak,
        Measurement("memory", f"{name}, time", other, "s", seconds["ours"], seconds[other]),
    ]


def relative_gap(ours: Path, other: Path) -> float:
    """Return the largest difference of gradients, over the largest gradient of the same tensor."""
    mine, theirs = load_file(ours), load_file(other)
    return max(
        float((mine[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in mine
    )


def run_side(
    side: str, vocabulary: int, tokens: int, hidden_size: int, device: str, target: Path
) -> dict[str, float]:
    """Compute one side and save its gradients; return peak bytes beyond the inputs, and seconds."""
    keep_freed_memory()  # as in every stage
    generator = torch.Generator().manual_seed(0)
    kind = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn((tokens, hidden_size), generator=generator).to(device, kind)
    # Weights of this size give logits of a few units.
    weight = torch.randn((vocabulary, hidden_size), generator=generator)
    weight = weight.mul_(2 / hidden_size**0.5).to(device, kind)
    targets = torch.randint(vocabulary, (tokens,), generator=generator).to(device)
    hidden.requires_grad_()
    weight.requires_grad_()
    logprobs = {"ours": _chunked, "full logits": _full}[side]
    peak = _peak_since_now(device)
    started = time.perf_counter()
    logprobs(hidden, weight, targets).mean().backward()
    bytes_held = peak()
    seconds = time.perf_counter() - started
    assert hidden.grad is not None and weight.grad is not None
    rows = torch.linspace(0, vocabulary - 1, min(ROWS_COMPARED, vocabulary)).long().to(device)
    gradients = {"hidden": hidden.grad, "weight": weight.grad[rows]}
    save_file({name: g.float().cpu().contiguous() for name, g in gradients.items()}, target)
    return {"bytes": bytes_held, "seconds": seconds}


def _chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return token_logprobs(hidden, targets, Head(weight), temperature=1.0)[0]


def _full(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight).float()
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def _peak_since_now(device: str) -> Callable[[], float]:
    """Return a function that tells the most bytes held since now, beyond those held now."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        return lambda: float(torch.cuda.max_memory_allocated() - held)
    if not _RESET.exists():
        before = peak_memory_bytes()
        return lambda: float(peak_memory_bytes() - before)
    _RESET.write_text("5")  # Linux: the high-water mark begins anew
    before = _status("VmRSS")
    return lambda: float(_status("VmHWM") - before)


def _status(name: str) -> int:
    """Return a value of this process's `/proc` status, in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


if __name__ == "__main__":
    chosen, *counts, place, folder = sys.argv[1:]
    vocabulary_size, token_count, width = map(int, counts)
    print(json.dumps(run_side(chosen, vocabulary_size, token_count, width, place, Path(folder))))
    sys.stdout.flush()
    os._exit(0)
