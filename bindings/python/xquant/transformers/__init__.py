"""Causal language models of Hugging Face's transformers whose keys and values lie in a cache of xquant's.

    import xquant.transformers

    with xquant.transformers.use(model, "kv4"):
        tokens = model.generate(**inputs, max_new_tokens=100)

The model computes K and V as ever; xquant stores them, and attends, on the processor. It enters by transformers' own
doors: an attention function and a mask function of the name "xquant", and a subclass of transformers.Cache. Batches
with padding, beams, assisted decoding, cropping and further turns of a conversation work as with other caches.

Needs PyTorch and transformers 5.24 or later (pip install "xquant[transformers]").
"""

try:
    from ._cache import Cache
    from ._calibrate import calibrate
    from ._use import Use
except ImportError as error:
    raise ImportError(
        f'xquant.transformers needs PyTorch and transformers 5.24: pip install "xquant[transformers]" ({error})'
    ) from error

__all__ = ["Cache", "Use", "calibrate", "use"]


def use(model, scheme, *, calibration=None, threads=None, **settings):
    """Makes a model keep its keys and values in a cache of `scheme` until the Use that is returned is stopped.

    model: a decoder on the processor, in float32, float16 or bfloat16, that takes attention functions from outside.
    scheme: "head4", "kv4", ... (xquant.schemes()).
    calibration: for schemes that need it: what `calibrate` found, or its file, or a file of `xquant-llm calibrate` for
    the same model, whose GGUF weights may have pairs of channels laid out in another way.
    threads: of attention; None: as many as PyTorch has.
    settings: those of xquant.Cache, such as sinks=4, recent=128, strict=False.

    From then on generate and the model itself make their caches in this one (Use.cache makes one by hand). Raises
    ShapeError or MismatchError for what cannot be served, StateError where the model is in use already; the model is
    as it was before then. Cost: the model runs twice over eight tokens.
    """
    return Use(model, scheme, calibration, threads, settings)
