"""What vectors have to be like, whatever made them: finite, of unit length, each its text's alone.

Comes in: vectors of the same texts, computed together and alone. Goes out: nothing, or a refusal in one sentence. Never here:
how they are computed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from workers.encoder.ways import least_cosine
from workers.errors import EnvironmentFault

# How far a text's vector may move with its company, or with the way it is computed (1 − cosine). float32 moves by 1e-12,
# bfloat16 by 1e-4, measured; a broken mask or window moves it by 1e-2 and more.
TOLERANCE = {torch.float32: 1e-9, torch.bfloat16: 2e-3, torch.float16: 2e-3}
# How far a length may be from 1.
_LENGTH = 1e-5


def require_sound(
    together: npt.NDArray[np.float64], alone: npt.NDArray[np.float64], folder: Path, dtype: torch.dtype
) -> None:
    """Raise EnvironmentFault unless the rows, both [texts, dim], are what a model's vectors are.

    ``folder`` is the model's, ``dtype`` what it is computed in.
    """
    name = str(dtype).removeprefix("torch.")
    if not (np.isfinite(together).all() and np.isfinite(alone).all()):
        advice = "its weights are damaged" if dtype == torch.float32 else "try model.dtype: float32"
        raise EnvironmentFault(f"self-test: {folder} gives vectors that are not finite in {name}; {advice}")
    if (worst := np.abs(np.linalg.norm(together, axis=1) - 1).max()) > _LENGTH:
        raise EnvironmentFault(f"self-test: {folder} gives vectors that are {worst:.1e} off unit length")
    if (worst := 1 - least_cosine(together, alone)) > TOLERANCE[dtype]:
        raise EnvironmentFault(
            f"self-test: a text's vector depends on its batch (1 - cosine is {worst:.1e} in {name}, allowed "
            f"{TOLERANCE[dtype]:.0e}); the model mixes texts, or this version of torch runs it wrongly"
        )
