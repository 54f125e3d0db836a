"""A model in use: what is put in its way, and how its rows go to xquant and back."""

import inspect

import numpy as np
import torch
import transformers
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function

from .. import _core
from .._batch import Batch
from .._core import MismatchError, ShapeError, StateError
from .._rope import PAIRINGS, check_tables, inverse, turn_back
from ._cache import Cache
from ._layers import ROWS, Attended, Call, LayerOf

NAME = "xquant"  # of the attention function and the mask function
SERVED = {"full_attention", "sliding_attention"}


class Use:
    """A model with a cache of xquant's: a context manager, which stops at its end.

    store: the xquant.Cache of all sequences (store.bytes() says what they take). layers: the xquant.Layers that it was
    made for. model, scheme: what use() was given.
    """

    def __init__(self, model, scheme, calibration, threads, settings, turn_back=False):
        _check_model(model)
        self.model, self.scheme, self.layers, self.store = model, scheme, [], None
        self.pending = None  # what Cache.update was given, until the attention function is called
        self._calls = {}  # of each layer what its attention module was called with
        self._tables = {}
        self._probed = None
        self._hooks = []
        self._before = model.config._attn_implementation
        self._cache_place = list(inspect.signature(model.forward).parameters).index("cache")
        try:
            self._enter()
            self._layers = self._find_layers()
            self.layers, self.store = self._make_store(calibration, threads, settings, turn_back)
        except BaseException:
            self.stop()
            raise

    def cache(self):
        """An empty Cache, for calls that are to share one: generate(cache=...), model(cache=...)."""
        windows = any(layer.window for layer in self._layers)
        return Cache(self, Batch(self.store), len(self._layers), croppable=not windows)

    def load(self, path):
        """The Cache in a file of Cache.save, of this model and scheme. Raises FileError, MismatchError, DamageError."""
        out = self.cache()
        out.batch.load(path)
        return out

    def stop(self):
        """Leaves the model as it was before. Its caches are of no use afterwards."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for module in self.model.modules():
            if getattr(module, "_xquant", None) is self:
                del module._xquant
        if self.model.config._attn_implementation == NAME:
            self.model.set_attn_implementation(self._before)
        self.pending, self._calls, self._tables = None, {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()

    def __repr__(self):
        return f"<xquant.transformers.Use of {self.scheme!r} in a {type(self.model).__name__}>"

    def _enter(self):
        transformers.AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, mask)
        self.model.set_attn_implementation(NAME)
        if self.model.config._attn_implementation != NAME:
            raise ShapeError(f"a {type(self.model).__name__} takes no attention function from outside")
        for module in self.model.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module._xquant = self
                self._hooks.append(module.register_forward_pre_hook(self._before_layer, with_kwargs=True))
        self._hooks.append(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True))

    def _before_layer(self, module, args, kwargs):
        x = args[0] if args else kwargs.get("hidden_states")
        self._calls[module.layer_idx] = Call(kwargs.get("position_embeddings"), kwargs.get("position_ids"), x)

    def _before_model(self, _, args, kwargs):
        """Gives the model a Cache where it would make one of its own."""
        self.pending, self._calls = None, {}
        if kwargs.get("output_attentions") or getattr(self.model.config, "output_attentions", False):
            raise ShapeError("output_attentions: xquant's attention keeps no probabilities")
        given = kwargs.get("cache")
        if isinstance(given, Cache):
            if given.used is not self:
                raise ShapeError(f"the cache belongs to {given.used!r}, and the model is in {self!r}")
            return None
        if self._cache_place < len(args):
            raise ShapeError("the cache is given by its place; give it by its name")
        fresh = type(given) is transformers.DynamicCache and given.get_seq_length() == 0
        if given is not None and (not fresh or getattr(given, "_is_user_defined", False)):
            raise ShapeError(f"the cache is a {type(given).__name__}; give none, or one of Use.cache()")
        if kwargs.get("use_cache", self.model.config.use_cache) is False:
            raise ShapeError(f"use_cache is False; a model in {self!r} attends over its cache alone")
        return args, kwargs | {"cache": self.cache(), "use_cache": True}

    def _find_layers(self):
        """What each layer attends with: runs the model at position 0, then at 1 .. 8, attention giving zeros."""
        runs, places = [], torch.arange(1, 9)[None]
        layers = self.model.config.get_text_config().num_hidden_layers
        was_training = self.model.training
        self.model.eval()
        try:
            for positions in (torch.zeros_like(places), places):
                self._probed = {}
                cache = Cache(self, Batch(None), layers, croppable=True)
                with torch.no_grad():
                    self.model(
                        input_ids=7 * places % self.model.get_input_embeddings().num_embeddings,
                        position_ids=positions,
                        use_cache=True,
                        cache=cache,
                    )
                runs.append(self._probed)
            if sorted(runs[0]) != list(range(layers)):
                raise ShapeError(f"layers {sorted(runs[0])} attend with keys of their own; expected all of {layers}")
            candidates = [
                buffer.detach().double().cpu().numpy()
                for name, buffer in self.model.named_buffers()
                if name.endswith("inv_freq") and "original" not in name
            ]
            return [LayerOf(i, runs[0][i], runs[1][i], places[0].numpy(), candidates) for i in range(layers)]
        finally:
            self._probed = None
            self.model.train(was_training)

    def _make_store(self, calibration, threads, settings, turn_back):
        describe = lambda keys: [layer.describe(keys, pairing) for layer in self._layers]
        known, pairing, refusals = calibration, None, []
        if calibration is not None and not isinstance(calibration, _core.Calibration):
            # What was learnt of GGUF weights may have pairs of channels side by side, where this model has them apart.
            for pairing in PAIRINGS:
                try:
                    known = _core.load_calibration(str(calibration), describe("keys_before_rope"))
                    break
                except MismatchError as error:
                    refusals.append(error)
            else:
                raise next((error for error in refusals if "pairing" not in str(error)), refusals[0])
        threads = torch.get_num_threads() if threads is None else threads
        refusal = next((layer.refusal for layer in self._layers if layer.refusal), None)
        # Where a scheme stores keys after RoPE, they need not be turned back first; what takes neither keys takes X.
        inputs = ["keys_in_place" if refusal else "keys_after_rope", "keys_before_rope", "x"]
        inputs = inputs[1:2] if turn_back else inputs if all(layer.takes_x for layer in self._layers) else inputs[:2]
        refusals = []
        for self._input in inputs:
            if refusal and self._input in ("keys_before_rope", "x"):
                raise refusal
            layers = describe(self._input)
            try:
                _core.predict(self.scheme, layers, 1, calibration=known, **settings)
                return layers, _core.Cache(self.scheme, layers, threads=threads, calibration=known, **settings)
            except ShapeError as error:
                refusals.append(error)
        raise refusals[min(1, len(refusals) - 1)]

    def attend(self, module, query, key, value, mask, options):
        """Stores K and V [B, Hkv, n, Dh] of a layer and attends with Q [B, H, n, Dh]: [B, n, H, Dh]."""
        pending, self.pending = self.pending, None
        if pending is None or pending.layer != module.layer_idx or pending.key is not key or pending.value is not value:
            raise StateError(
                f"layer {module.layer_idx} attends with other rows than it gave to a cache of xquant's: layers that "
                "share keys, or change them on the way, are not served"
            )
        call = self._calls.pop(pending.layer, Call())
        if self._probed is not None:
            self._probed[pending.layer] = Attended(module, query, key, value, call, options)
            return query.transpose(1, 2).new_zeros(query.transpose(1, 2).shape)
        return self._attend(pending, query, call, mask, options)

    def _attend(self, pending, query, call, mask, options):
        layer, batch = self._layers[pending.layer], pending.batch
        layer.check_call(query, options)
        rows, heads, columns, head_dim = query.shape
        if pending.layer == 0:
            self._tables = {}
            batch.begin(rows, columns, _real(mask), _places(call.positions))
        tokens = batch.tokens
        flat = lambda x: _dense(_pick(x.transpose(1, 2).reshape(rows * columns, x.shape[1], head_dim), tokens))
        q = layer.laid_out(flat(query))
        if self._input == "x":
            batch.append_x(pending.layer, _pick(call.x.reshape(rows * columns, -1), tokens))
        else:
            k, v = flat(pending.key), flat(pending.value)
            if layer.rope is not None and self._input == "keys_before_rope":
                tables = self._inverse(layer.rope, call, rows, columns, tokens)
                k = turn_back(k, *tables, layer.rope.pairing, layer.target, torch.empty_like(k))
            else:
                k = layer.laid_out(k)
            self._heard(pending.layer, k, v, q)
            batch.append(pending.layer, k, v)
        answers = batch.attend(pending.layer, q)
        if answers is None or tokens is not None:
            out = query.new_zeros(rows * columns, heads * head_dim)
            if answers is not None:
                out[tokens] = torch.from_numpy(answers).to(query.dtype)
        else:
            out = torch.from_numpy(answers).to(query.dtype)
        if pending.layer == len(self._layers) - 1:
            batch.commit()
            self._tables = {}
        return out.view(rows, columns, heads, head_dim)

    def _heard(self, layer, k, v, q):
        """Rows [tokens, heads, Dh] of a layer that are about to be stored."""

    def _inverse(self, rope, call, rows, columns, tokens):
        """What turn_back takes, [tokens, 1, pairs] each; made once for all layers with these cosines and sines."""
        known = self._tables.get(id(call.embeddings[0]))
        if known is not None:
            return known[1]
        flat = lambda x: _pick(x.expand(rows, *x.shape[1:]).reshape(rows * columns, *x.shape[2:]), tokens)
        c, s = (flat(rope.one_of_each(table)) for table in call.embeddings)
        places = _places(call.positions)
        if places is not None and len(c) > 0:
            at = flat(torch.from_numpy(np.broadcast_to(places, (rows, columns)).copy()))
            ends = [0, len(at) - 1]
            check_tables(rope, c[ends].float().numpy(), s[ends].float().numpy(), at[ends].numpy())
        found = inverse(c[:, None], s[:, None])
        self._tables[id(call.embeddings[0])] = (
            call.embeddings[0],
            found,
        )  # the table is kept, so that no other gets its id
        return found


def attention(module, query, key, value, attention_mask, **options):
    """transformers' attention function "xquant": Q [B, H, n, Dh], K and V [B, Hkv, n, Dh] -> ([B, n, H, Dh], None)."""
    used = getattr(module, "_xquant", None)
    if used is None:
        raise StateError("the attention function 'xquant' is for models that xquant.transformers.use was called for")
    return used.attend(module, query, key, value, attention_mask, options), None


def mask(batch_size, q_length, kv_length, q_offset=0, kv_offset=0, mask_function=causal_mask_function, **options):
    """transformers' mask function "xquant": which columns [B, kv_length] are tokens, or None where all are.

    Raises ShapeError where queries see other tokens than those before them, up to a window."""
    if mask_function is not causal_mask_function:
        queries = q_offset + torch.tensor([[0], [q_length // 2], [q_length - 1]])
        columns = kv_offset + torch.arange(kv_length)[None]
        zero = torch.zeros(1, 1, dtype=torch.long)
        seen = mask_function(zero, zero, queries, columns) & torch.ones_like(queries + columns, dtype=torch.bool)
        reach = seen.sum(1, keepdim=True)
        if not torch.equal(seen, (columns <= queries) & (columns > queries - reach)):
            raise ShapeError("queries see other tokens than those before them, up to a window: not served")
    real = options.get("attention_mask")
    return None if real is None or bool(real.all()) else real[:, -kv_length:]


def _check_model(model):
    if not isinstance(model, transformers.PreTrainedModel):
        raise ShapeError(f"a {type(model).__name__}; expected a model of transformers")
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder or not model.can_generate():
        raise ShapeError(f"a {type(model).__name__}; expected a causal language model that is a decoder alone")
    others = sorted(set(getattr(config, "layer_types", None) or SERVED) - SERVED)
    if others:
        raise ShapeError(f"layers of the kinds {', '.join(others)}; expected {' or '.join(sorted(SERVED))}")
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            raise ShapeError(f"{name} is on {parameter.device}; xquant attends on the processor: model.to('cpu')")
    if model.dtype not in ROWS:
        raise ShapeError(f"the model is {model.dtype}; expected float32, float16 or bfloat16")
    if "cache" not in inspect.signature(model.forward).parameters:
        raise ShapeError(
            f"{type(model).__name__}.forward takes no argument named cache (transformers {transformers.__version__})"
        )
    if any(getattr(module, "_xquant", None) is not None for module in model.modules()):
        raise StateError("the model is in use already: stop that use first")


def _places(positions):
    """Positions [B or 1, n] as NumPy has them, or None. Raises ShapeError for several positions a token."""
    if positions is None:
        return None
    if positions.ndim != 2:
        raise ShapeError(f"positions {list(positions.shape)}; expected [batch, tokens], one position a token")
    return positions.numpy()


def _real(mask):
    """Columns [B, all] that are tokens, or None. Raises ShapeError for a mask that was not made by `mask`."""
    if mask is None:
        return None
    if mask.ndim != 2:
        raise ShapeError(f"a mask {list(mask.shape)}; expected [batch, columns]: which ones are tokens")
    return mask.numpy()


def _pick(x, rows):
    return x if rows is None else x[rows]


def _dense(x):
    """x [n, heads, Dh] whose rows have their values side by side; rows may lie apart."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
