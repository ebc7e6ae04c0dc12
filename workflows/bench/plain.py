"""A model as transformers alone loads it: what the baselines compute with.

Our models come from `common.modeling.load`, which makes their linear layers compute by
`common.modeling.linear`; a baseline must not gain from that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from common.modeling.load import load_config, model_class, quiet_transformers


def plain_model(folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> Any:
    """Load the whole causal language model of a Hugging Face directory, in eval mode."""
    cls: Any = model_class(load_config(folder))
    with quiet_transformers():
        model = cls.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
    return model.to(device).eval()
