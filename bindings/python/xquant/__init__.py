"""Quantized caches of transformer attention.

    import numpy as np
    import xquant

    layer = xquant.Layer(9, 3, 64, input="keys_before_rope", inverse_frequencies=xquant.rope_frequencies(64, 1e5))
    cache = xquant.Cache("kv4", 30 * [layer], recent=64)
    sequence = cache.create()
    with cache.step({sequence: n}) as step:          # n new tokens; commits at the end of the block
        for i in range(30):
            step.append_kv(i, k, v)                  # [n, 3 * 64]
            out = step.attend(i, q)                  # [n, 9 * 64] after RoPE -> float32 [n, 9 * 64]

Arrays are NumPy's, or of anything that has DLPack, on the processor; rows are read where they lie. Other threads run
while append and attend work. Errors are subclasses of xquant.Error.
"""

from ._core import (
    BudgetError,
    Cache,
    Calibration,
    Calibrator,
    DamageError,
    Error,
    FileError,
    Layer,
    LevelError,
    MismatchError,
    NumberError,
    PlannedScheme,
    SchemeInfo,
    Sequence,
    SequenceError,
    ShapeError,
    StateError,
    Step,
    __version__,
    level,
    load_calibration,
    plan,
    predict,
    rope_frequencies,
    schemes,
)

__all__ = [
    "BudgetError",
    "Cache",
    "Calibration",
    "Calibrator",
    "DamageError",
    "Error",
    "FileError",
    "Layer",
    "LevelError",
    "MismatchError",
    "NumberError",
    "PlannedScheme",
    "SchemeInfo",
    "Sequence",
    "SequenceError",
    "ShapeError",
    "StateError",
    "Step",
    "__version__",
    "level",
    "load_calibration",
    "plan",
    "predict",
    "rope_frequencies",
    "schemes",
]
