"""What a model's layers attend with, found out by running it: shapes, RoPE, scale, window, weights."""

import dataclasses

import numpy as np
import torch

from .. import _core
from .._core import MismatchError, ShapeError
from .._rope import find_rope, lay_out

ROWS = (torch.float32, torch.float16, torch.bfloat16)
# Tensors that an attention function may be given and that are looked at, or say nothing new.
KNOWN_TENSORS = {"position_ids", "cache_position", "s_aux", "num_items_in_batch", "logits_to_keep"}


@dataclasses.dataclass
class Call:
    """What an attention module is called with: cosines and sines [1 or B, n, pairs or twice as many], positions
    [1 or B, n], X [B, n, D]; None where a module takes none."""

    embeddings: tuple = None
    positions: torch.Tensor = None
    x: torch.Tensor = None


@dataclasses.dataclass
class Attended:
    """A call of the attention function: Q [1, H, n, Dh], K and V [1, Hkv, n, Dh]; and its module's."""

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    call: Call
    options: dict


class LayerOf:
    """A layer of the model. still, turned: the same tokens, at position 0 and at `positions` [n].

    rope: its Rope, or None where keys are not turned, or in a way that only the model knows: refusal says that then.
    Raises ShapeError for what xquant does not attend with."""

    def __init__(self, index, still, turned, positions, candidates):
        self.index, self.module = index, turned.module
        _, self.heads, _, self.head_dim = turned.query.shape
        self.kv_heads = turned.key.shape[1]
        if turned.value.shape != turned.key.shape or turned.key.shape[3] != self.head_dim:
            raise ShapeError(
                f"layer {index}: Q, K and V are {[list(x.shape) for x in (turned.query, turned.key, turned.value)]}; "
                "expected heads of one width"
            )
        self.scaling, self.soft_cap, self.window = _numbers(turned.options)
        self.sink_logits = turned.options.get("s_aux")
        self.check_call(turned.query, turned.options)
        self.rope = self.refusal = None
        rows = [x.key[0].transpose(0, 1).float().numpy() for x in (still, turned)]
        if turned.call.embeddings is not None and np.abs(rows[0] - rows[1]).max() > 1e-3 * np.abs(rows[0]).max():
            tables = [table[0].float().numpy() for table in turned.call.embeddings]
            try:
                self.rope = find_rope(*rows, *tables, positions, candidates, tolerance=3e-2)
            except MismatchError as error:
                self.refusal = error
        self.target = self.rope and self.rope.pairing
        self.takes_x = self._makes_keys(still)

    def check_call(self, query, options):
        """Raises ShapeError for a call of the attention function that cannot be served, or that is not as at first."""
        where = f"layer {self.index}"
        if query.device.type != "cpu":
            raise ShapeError(f"{where}: rows are on {query.device}; xquant attends on the processor: model.to('cpu')")
        if query.dtype not in ROWS:
            raise ShapeError(f"{where}: rows are {query.dtype}; expected float32, float16 or bfloat16")
        if self.module.training or query.requires_grad:
            raise ShapeError(
                f"{where}: xquant's attention has no gradients: model.eval(), and torch.no_grad() around the call"
            )
        if options.get("output_attentions"):
            raise ShapeError(f"{where}: output_attentions: xquant's attention keeps no probabilities")
        if options.get("is_causal") is False:
            raise ShapeError(f"{where}: attention that is not causal")
        unknown = [name for name, value in options.items() if torch.is_tensor(value) and name not in KNOWN_TENSORS]
        if unknown:
            raise ShapeError(f"{where}: attention with {', '.join(unknown)} is not served")
        if _numbers(options) != (self.scaling, self.soft_cap, self.window):
            raise ShapeError(
                f"{where}: scale, soft cap and window are {_numbers(options)} now; they were "
                f"{(self.scaling, self.soft_cap, self.window)}"
            )

    def describe(self, keys, pairing=None):
        """The xquant.Layer. keys: its input. pairing: how pairs of channels lie in the cache; None: as in the model."""
        self.target = self.rope and (pairing or self.rope.pairing)
        rope = {}
        if self.rope is not None:
            rope = {"pairing": self.target, "rope_factor": self.rope.factor}
            rope["inverse_frequencies"] = self.rope.frequencies.tolist()
        sinks = {} if self.sink_logits is None else {"sink_logits": self.sink_logits.detach().float().contiguous()}
        return _core.Layer(
            self.heads,
            self.kv_heads,
            self.head_dim,
            input=keys,
            softmax_scale=self.scaling,
            soft_cap=self.soft_cap,
            window=self.window,
            **rope,
            **sinks,
            **self._weights(),
        )

    def laid_out(self, x):
        """Rows [n, heads, Dh] with the channels of a head as they lie in the cache."""
        if self.rope is None or self.target == self.rope.pairing:
            return x
        return lay_out(x, self.rope.pairs, self.rope.pairing, self.target, torch.empty_like(x))

    def _makes_keys(self, still):
        """Whether K at position 0 and V are what the weights make of the X that the module was called with."""
        weights, x = self._weights(), still.call.x
        if "w_k" not in weights or x is None or x.shape[-1] != weights["width"]:
            return False
        made = []
        for name in "kv":
            rows = torch.nn.functional.linear(x[0].float(), weights["w_" + name].float(), weights.get("b_" + name))
            made.append(rows.unflatten(-1, (self.kv_heads, self.head_dim)))
        if "k_norm" in weights:
            mean = made[0].square().mean(-1, keepdim=True)
            made[0] = made[0] * (mean + weights["k_norm_epsilon"]).rsqrt() * weights["k_norm"]
        if self.rope is not None:
            made[0][..., : 2 * self.rope.pairs] *= self.rope.factor
        rows = [rows[0].transpose(0, 1).float() for rows in (still.key, still.value)]
        return all(bool((a - b).abs().max() <= 3e-2 * b.abs().max()) for a, b in zip(made, rows))

    def _weights(self):
        """w_k, w_v, b_k, b_v, k_norm and w_o where they are to be found, for schemes that ask for them."""
        module, width = self.module, self.kv_heads * self.head_dim
        out, key, value = {}, *(_linear(module, name, width) for name in ("k_proj", "v_proj"))
        gain, epsilon = self._norm()
        if key is not None and value is not None and gain is not False:
            by_head = lambda x: self.laid_out(x.reshape(self.kv_heads, self.head_dim, -1).transpose(1, 2)).transpose(
                1, 2
            )
            out = {"w_k": by_head(key.weight.detach()).reshape(width, -1).contiguous(), "w_v": value.weight.detach()}
            out["width"] = out["w_k"].shape[1]
            if key.bias is not None:
                out["b_k"] = by_head(key.bias.detach()).reshape(width).float().contiguous()
            if value.bias is not None:
                out["b_v"] = value.bias.detach().float().contiguous()
            if gain is not None:
                out |= {"k_norm": self.laid_out(gain[None, None])[0, 0].contiguous(), "k_norm_epsilon": epsilon}
        for name in ("o_proj", "out_proj", "dense"):
            of = _linear(module, name, columns=self.heads * self.head_dim)
            if of is not None:
                out["w_o"] = of.weight.detach()
        return out

    def _norm(self):
        """Gain [Dh] and epsilon of the norm of a key head; None without one, False where it is of another kind."""
        norm = getattr(self.module, "k_norm", None)
        if norm is None:
            return None, None
        weight = getattr(norm, "weight", None)
        epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        if weight is None or weight.shape != (self.head_dim,) or epsilon is None:
            return False, None
        with torch.no_grad():  # whatever the gain is made of: the norm of ones is the gain
            return norm(torch.ones(1, self.head_dim, dtype=weight.dtype))[0].float(), float(epsilon)


def _numbers(options):
    """Scale (0: 1 / sqrt(Dh)), soft cap (0: none) and window (0: none) of a call."""
    return tuple(options.get(name) or 0 for name in ("scaling", "softcap", "sliding_window"))


def _linear(module, name, rows=None, columns=None):
    """A submodule that has a matrix of this shape, or None."""
    of = getattr(module, name, None)
    weight = getattr(of, "weight", None)
    if not isinstance(of, torch.nn.Linear) or weight.dtype not in ROWS or weight.device.type != "cpu":
        return None
    return of if rows in (None, weight.shape[0]) and columns in (None, weight.shape[1]) else None
