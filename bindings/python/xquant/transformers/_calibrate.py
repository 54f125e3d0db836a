"""Statistics of a model's keys and values, gathered while it reads a text."""

import torch

from .. import _core
from .._core import ShapeError
from ._use import Use


class _Listening(Use):
    """A use whose calibrator hears the rows of every layer."""

    calibrator = None

    def _heard(self, layer, k, v, q):
        if self.calibrator is not None:
            self.calibrator.add_kv(layer, *(x.float().contiguous().numpy() for x in (k, v, q)))


def calibrate(model, contexts, *, path=None, sinks=4, joint=True, threads=None):
    """The xquant.Calibration of a model, for use(model, "head4:uniform", calibration=...) and its kind.

    contexts: lists or tensors of token ids [n], each read from position 0 on; 20 of 1,024 tokens, from places that are
    far apart, gain most of what is to be gained. path: a file to write as well. sinks: first tokens of a context that
    are left out. joint: for joint* as well. How layers share bits (head4 without :uniform) is measured by
    `xquant-llm calibrate` alone. Raises as use does, and ShapeError for a context that is too short. Cost: the model
    reads every context; of a layer and context 800 H Dh products for each of its tokens.
    """
    contexts = [torch.as_tensor(context).reshape(1, -1) for context in contexts]
    shortest = min((context.shape[1] for context in contexts), default=0)
    if shortest < sinks + 2:
        raise ShapeError(
            f"{len(contexts)} contexts, the shortest of {shortest} tokens; expected one of {sinks + 2} or more"
        )
    with _Listening(model, "f16", None, threads, {"sinks": sinks}, turn_back=True) as used, torch.inference_mode():
        count = torch.get_num_threads() if threads is None else threads
        used.calibrator = _core.Calibrator(used.layers, sinks=sinks, joint=joint, threads=count)
        for context in contexts:
            model(context, cache=used.cache(), logits_to_keep=1)
        found = used.calibrator.finish()
        if path is not None:
            found.save(str(path), used.layers)
    return found
