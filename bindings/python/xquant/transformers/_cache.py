"""transformers' side of a batch: a Cache, and its layers, through which rows come in."""

import dataclasses

import torch
import transformers
from transformers.cache_utils import CacheLayerMixin

from .._batch import Batch
from .._core import ShapeError


class Cache(transformers.Cache):
    """Keys and values of a batch in a model's cache of xquant's; made by Use.cache, or for generate by the model.

    One forward pass is one step: until its last layer has attended nothing has changed. used: the Use that it belongs
    to. batch: its sequences.
    """

    def __init__(self, used, batch, layers, croppable):
        super().__init__(layers=[CacheLayer(used, batch, i, croppable) for i in range(layers)])
        self.used, self.batch = used, batch

    def reorder_cache(self, beam_idx):
        """Row i becomes what row beam_idx[i] was. beam_idx [B]."""
        if self.batch.columns:
            self.batch.select(beam_idx.tolist())

    def batch_select_indices(self, indices):
        """Keeps the rows `indices`, of which there may be fewer or more."""
        if self.batch.columns:
            self.batch.select(torch.arange(len(self.batch.sequences))[indices].tolist())

    def batch_repeat_interleave(self, repeats):
        """Every row becomes `repeats` rows, side by side, which share pages."""
        self.batch.select([row for row in range(len(self.batch.sequences)) for _ in range(repeats)])

    def crop(self, tokens_to_remove):
        """crop(-n) takes away the last n columns. Raises ShapeError for another sign, and for too many."""
        if tokens_to_remove > 0:
            raise ShapeError(f"crop({tokens_to_remove}): expected 0, or a negative number of columns to take away")
        self.batch.crop(-int(tokens_to_remove))

    def reset(self):
        """Forgets everything."""
        self.batch.reset()

    def save(self, path):
        """Writes the batch into a file, codes as they are; Use.load reads it. Raises FileError."""
        self.batch.save(path)


class CacheLayer(CacheLayerMixin):
    """What transformers asks of a cache for one layer. Rows go on from here to the attention function."""

    is_compileable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, used, batch, index, croppable):
        super().__init__()
        self.used, self.batch, self.index, self.is_croppable = used, batch, index, croppable

    def lazy_initialization(self, key_states, value_states):
        """Nothing is kept here."""

    def update(self, key_states, value_states, *args, **kwargs):
        """K and V [B, Hkv, n, Dh] of the new tokens, which are returned as they are."""
        self.used.pending = Pending(self.batch, self.index, key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length):
        """Columns that queries see at most, and the first one."""
        return self.batch.columns + query_length, 0

    def get_seq_length(self):
        """Columns, padding included."""
        return self.batch.columns

    def get_max_length(self):
        """No limit."""
        return -1


@dataclasses.dataclass
class Pending:
    """K and V [B, Hkv, n, Dh] on their way from Cache.update to the attention function."""

    batch: Batch
    layer: int
    key: torch.Tensor
    value: torch.Tensor
