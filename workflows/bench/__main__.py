"""bench: how fast this is, beside what people use and beside what the machine allows.

Everything is compared within one run: contenders take turns with the same model, prompts, lengths
and threads, and a figure is the median of the ratios by round. Each measurement names its floor:
the time of the multiply-adds and bytes that follow from the model's config, at the machine's
measured matmul and copy speed.

    python -m workflows.bench
    python -m workflows.bench --only sampler,packs --pairs 3 --output bench.json
    python -m workflows.bench --small                   # try the harness in minutes
    python -m workflows.bench --model qwen2.5-0.5b --device cuda --only sampler,packs,memory

torch is imported after `common.command`, which tells OpenMP that waiting threads should sleep.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from common.command import Debug, Json, Quiet, launch
from common.console import print_json, say, set_quiet
from common.errors import UserError
from common.modeling.load import compute_dtype, load_config, model_class
from common.runs.layout import REPOSITORY
from workflows.bench import (
    iteration,
    memory,
    packs,
    pipeline,
    sampler,
    scale,
    startup,
)
from workflows.bench.floor import measure_machine
from workflows.bench.measure import SMALL, Bench, Measurement, Sizes
from workflows.bench.table import everything, show, write

MODELS = REPOSITORY / "data" / "models"
BASE = MODELS / "arithmetic-base"
SMOLLM2 = MODELS / "smollm2-135m-instruct"
RANDOM_SHAPE = "qwen2.5-0.5b"

PARTS: dict[str, Callable[[Bench], Iterable[Measurement]]] = {
    "sampler": sampler.measure,
    "packs": packs.measure,
    "memory": memory.measure,
    "pipeline": pipeline.measure,
    "iteration": iteration.measure,
    "startup": startup.measure,
    "score": startup.measure_score,
    "default": startup.measure_default,
}
SCALE = "scale"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help=f"A Hugging Face directory, or {RANDOM_SHAPE}: that shape with random weights. "
        "SmolLM2-135M where `make smollm2` has made it, else the embedded base.",
    ),
]
OnlyOption = Annotated[str, typer.Option("--only", help=f"Of {','.join([*PARTS, SCALE])}.")]
PairsOption = Annotated[int, typer.Option("--pairs", min=1, help="Rounds after the warm-up.")]
ThreadsOption = Annotated[
    int, typer.Option("--threads", min=0, help="Of each side; 0: what torch takes by itself.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
OutputOption = Annotated[Path | None, typer.Option("--output", help="JSON file to write.")]
SmallOption = Annotated[bool, typer.Option("--small", help="Little work, to try the harness.")]


def main(
    only: OnlyOption = "",
    pairs: PairsOption = 5,
    model: ModelOption = "",
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 0,
    small: SmallOption = False,
    output: OutputOption = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how fast this is against what people use and against the machine's limits."""
    set_quiet(quiet or as_json)
    parts = chosen_parts(only)
    if "iteration" in parts:
        iteration.require_trl()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        bench = prepare(Path(scratch), model, device, threads, pairs, SMALL if small else Sizes())
        run(bench, parts, output, as_json=as_json)


def run(bench: Bench, parts: list[str], output: Path | None, *, as_json: bool = False) -> None:
    """Measure the parts one after another, print them, and write the file anew after each."""
    measurements: list[Measurement] = []
    laws: list[scale.Law] = []
    for part in parts:
        say(f"{part}: {bench.pairs} rounds after the warm-up")
        if part == SCALE:
            laws = scale.measure(bench)
        else:
            for measurement in PARTS[part](bench):
                measurements.append(measurement)
                say(f"  {measurement.line()}")
        if output is not None:
            write(output, bench, measurements, laws)
    if as_json:
        print_json(everything(bench, measurements, laws))
    else:
        show(bench, measurements, laws)


def chosen_parts(only: str) -> list[str]:
    """Return the parts that `--only` names, or all of them when it is empty.

    Raises:
        UserError: a part is unknown.
    """
    known = [*PARTS, SCALE]
    chosen = [part.strip() for part in only.split(",") if part.strip()] or known
    for part in chosen:
        if part not in known:
            raise UserError(f"--only {only!r}: {part!r} is no part; known: {', '.join(known)}")
    return [part for part in known if part in chosen]


def prepare(
    scratch: Path, model: str, device: str, threads: int, pairs: int, sizes: Sizes
) -> Bench:
    """Find the models and measure the machine.

    Raises:
        UserError: there is no such device.
    """
    import torch

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"--device {device}: use cpu, or cuda where torch finds a GPU")
    if threads:
        torch.set_num_threads(threads)
    place = torch.device(device)
    dtype = compute_dtype("auto", place)
    folder = random_model(scratch / RANDOM_SHAPE) if model == RANDOM_SHAPE else Path(model)
    if not model:
        folder = SMOLLM2 if SMOLLM2.is_dir() else BASE
    load_config(folder)
    return Bench(
        model=folder,
        default_model=BASE,
        device=place,
        dtype=dtype,
        threads=torch.get_num_threads(),
        pairs=pairs,
        sizes=sizes,
        machine=measure_machine(place, dtype, sizes.machine),
        scratch=scratch,
    )


def random_model(folder: Path) -> Path:
    """Save random weights in the shape of Qwen2.5-0.5B, with the embedded base's tokenizer."""
    import torch
    from transformers import AutoConfig

    from common.modeling.chat import load_tokenizer

    tokenizer = load_tokenizer(BASE)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4_864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model: Any = model_class(config)(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    # Progress bars of libraries would appear between the lines of the tables.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    launch(main)
