"""A batch of sequences of a cache, as programs know it that keep tokens in columns of a matrix with padding."""

import base64
import json

import numpy as np

from ._core import MismatchError, ShapeError, StateError


class Batch:
    """B sequences of an xquant.Cache, and which of their columns hold a token: the others are padding, and not stored.

    A step is begin, then append and attend for every layer in order, then commit. Until commit nothing has changed;
    abandon, and every other verb, forgets a step that did not get so far.
    """

    def __init__(self, cache):
        self.cache = cache
        self.sequences = []
        self.real = np.zeros((0, 0), bool)  # [B, columns]
        self.tokens = None  # rows of the step's matrices that hold tokens, or None where all do
        self._step = None
        self._coming = None

    @property
    def columns(self):
        """Columns, padding included."""
        return self.real.shape[1]

    def begin(self, rows, columns, mask=None, positions=None):
        """Starts a step that adds `columns` to each of `rows` sequences.

        mask [rows, all columns or the new ones]: false where there is padding; None: there is none. positions
        [rows or 1, columns]: where tokens stand, one after the other, behind those of the cache; None: next to them.
        Afterwards `tokens` says which rows of matrices [rows * columns, ...] hold tokens. Raises ShapeError."""
        self.abandon()
        if self.sequences and rows != len(self.sequences):
            raise ShapeError(f"a batch of {rows} rows; the cache has {len(self.sequences)}")
        coming = self._new_columns(rows, columns, mask)
        sequences = self.sequences or [self.cache.create() for _ in range(rows)]
        firsts = [None] * rows
        if positions is not None:
            firsts = self._firsts(sequences, coming, np.broadcast_to(np.asarray(positions), (rows, columns)))
        before = [sequence.next_position for sequence in sequences]
        for sequence, first in zip(sequences, firsts):
            if first is not None:
                sequence.next_position = first
        parts = [(sequence, int(n)) for sequence, n in zip(sequences, coming.sum(1)) if n > 0]
        try:
            self._step = self.cache.step(parts) if parts else None
        except BaseException:
            for sequence, position in zip(sequences, before):
                sequence.next_position = position
            raise
        self.sequences = sequences
        if self.real.shape[0] != rows:
            self.real = np.zeros((rows, 0), bool)
        self._coming = coming
        self.tokens = None if coming.all() else np.flatnonzero(coming)

    def _new_columns(self, rows, columns, mask):
        if mask is None:
            if not self.real.all():
                raise ShapeError(f"no mask is given, and {int((~self.real).sum())} of the cache's columns are padding")
            return np.ones((rows, columns), bool)
        mask = np.asarray(mask, bool)
        if mask.shape not in ((rows, columns), (rows, self.columns + columns)):
            raise ShapeError(
                f"a mask of {list(mask.shape)}; expected [{rows}, {columns}] for the new columns, or "
                f"[{rows}, {self.columns + columns}] for all"
            )
        if mask.shape[1] > columns and not np.array_equal(mask[:, : self.columns], self.real):
            changed = np.argwhere(mask[:, : self.columns] != self.real)[0]
            raise ShapeError(
                f"the mask changes column {changed[1]} of row {changed[0]}, which is in the cache as "
                f"{'a token' if self.real[tuple(changed)] else 'padding'}"
            )
        return mask[:, mask.shape[1] - columns :]

    def _firsts(self, sequences, coming, positions):
        """Of each row the position of its first new token, or None without one."""
        out = []
        for row, (sequence, real) in enumerate(zip(sequences, coming)):
            of = positions[row][real]
            if np.any(np.diff(of) != 1):
                raise ShapeError(
                    f"positions of row {row} are {of.tolist()}; expected one after the other, padding aside"
                )
            if len(of) > 0 and len(sequence) > 0 and of[0] < sequence.next_position:
                raise ShapeError(
                    f"row {row} goes on at position {of[0]}; the {len(sequence)} tokens of the cache end before "
                    f"{sequence.next_position}"
                )
            out.append(int(of[0]) if len(of) > 0 else None)
        return out

    def append(self, layer, k, v):
        """Stores a layer's rows k, v [tokens, Hkv, Dh], padding left out."""
        if self._step is not None:
            self._step.append_kv(layer, k, v)

    def append_x(self, layer, x):
        """Likewise x [tokens, D] of a cache of X."""
        if self._step is not None:
            self._step.append(layer, x)

    def attend(self, layer, q):
        """Attention of q [tokens, H, Dh] after RoPE: float32 [tokens, H * Dh]; None where there are no tokens."""
        return None if self._step is None else self._step.attend(layer, q)

    def commit(self):
        """The columns of the step are in the cache from here on. Raises StateError without a step."""
        if self._coming is None:
            raise StateError("commit without a step")
        if self._step is not None:
            self._step.commit()
        self.real = np.concatenate([self.real, self._coming], 1)
        self._step = self._coming = None

    def abandon(self):
        """Forgets a step that was not committed."""
        self._step = self._coming = None

    def crop(self, columns):
        """Takes away the last `columns`. Raises ShapeError where there are not as many."""
        self.abandon()
        if not 0 <= columns <= self.columns:
            raise ShapeError(f"{columns} columns are to be taken away; the cache has {self.columns}")
        if columns == 0:
            return
        kept = self.real[:, : self.columns - columns]
        lengths = kept.sum(1)
        for sequence, n in zip(self.sequences, lengths):
            if n < len(sequence) and n < sequence.shortest_prefix and n > 0:
                raise ShapeError(
                    f"a sequence of {len(sequence)} tokens is to be cut to {n}; windows of attention left what "
                    f"{sequence.shortest_prefix} and more need"
                )
        for sequence, n in zip(self.sequences, lengths):
            if n < len(sequence):
                sequence.truncate(int(n))
        self.real = kept

    def select(self, parents):
        """Row i becomes what row parents[i] was: beams that go on, fewer rows, or more."""
        self.abandon()
        parents = [int(p) for p in parents]
        if any(not 0 <= p < len(self.sequences) for p in parents):
            raise ShapeError(f"rows {parents} are asked for; the cache has {len(self.sequences)}")
        if len(parents) == len(self.sequences):
            self.cache.gather(self.sequences, parents)
        else:
            self.sequences = [self.sequences[p].fork() for p in parents]
        self.real = self.real[parents]

    def reset(self):
        """Forgets all tokens and rows."""
        self.abandon()
        self.sequences, self.real = [], np.zeros((0, 0), bool)

    def save(self, path):
        """Writes the batch into a file, which replaces `path` once it is complete. Raises FileError."""
        self.abandon()
        packed = base64.b64encode(np.packbits(self.real).tobytes()).decode()
        self.cache.save(self.sequences, str(path), json.dumps({"rows_columns": list(self.real.shape), "real": packed}))

    def load(self, path):
        """Becomes the batch of a file of save. Raises FileError, DamageError, MismatchError."""
        sequences, note = self.cache.load(str(path))
        try:
            described = json.loads(note)
            rows, columns = described["rows_columns"]
            bits = np.frombuffer(base64.b64decode(described["real"]), np.uint8)
            real = np.unpackbits(bits, count=rows * columns).astype(bool).reshape(rows, columns)
        except (ValueError, KeyError, TypeError) as error:
            raise MismatchError(f"{path}: sequences without a batch's columns; Batch.save did not write it") from error
        if real.sum(1).tolist() != [len(s) for s in sequences]:
            raise MismatchError(
                f"{path}: columns of {real.sum(1).tolist()} tokens, sequences of {[len(s) for s in sequences]}"
            )
        self.abandon()
        self.sequences, self.real = sequences, real
