"""The importance matrix: how strongly each input column of each weight matrix is used, measured on calibration text.

If the inputs x of a matrix W are known, the expected squared error of one output row is sum_j E[x_j^2] (w_j - w'_j)^2,
plus cross terms that this approach drops. So a block encoder can weigh the error of column j by the mean of x_j^2.
That mean, one number a column, is the whole "imatrix" of llama.cpp. GPTQ keeps the cross terms (its Hessian); the
diagonal of that Hessian is the importance, times two.
"""

from dataclasses import dataclass, field

import numpy as np

from refquant.errors import BadInput


@dataclass
class Entry:
    """Sums of squares [experts, in] of one matrix's inputs, and how many inputs each expert saw, int64 [experts]."""

    sums: np.ndarray
    counts: np.ndarray

    def check(self, name: str) -> None:
        """Raise `BadInput` for sums that are not finite or below zero; name the column."""
        wrong = np.argwhere(~(np.isfinite(self.sums) & (self.sums >= 0)))
        if wrong.size:
            expert, column = wrong[0]
            raise BadInput(
                f"importance of {name}: {self.sums[expert, column]} at expert {expert}, column {column}; "
                "expected a finite sum of squares"
            )


@dataclass
class ImportanceMatrix:
    """Importance by tensor name (GGUF names, `blk.0.attn_q.weight`), with what llama.cpp's files say about its origin.

    `chunk_size` is the tokens of one chunk of text. It is 0 in what was read from the older file form, which keeps
    means times the number of chunks: counts are chunks then, not tokens.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    chunk_count: int = 0
    chunk_size: int = 0

    def add(self, name: str, x: np.ndarray, expert: int = 0, experts: int = 1) -> None:
        """Add the squares of inputs x [..., in] of a matrix, or of one expert of a stack; sums are kept in float64.

        Raises `BadInput` for NaN or infinity, and for a width or number of experts that changes.

        Against other code: llama.cpp adds in float32, and leaves out batches of fewer than 16 tokens.
        """
        x = np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1])
        if not np.isfinite(x).all():
            raise BadInput(f"importance of {name}: the activations hold NaN or infinity")
        entry = self.entries.setdefault(name, Entry(np.zeros((experts, x.shape[1])), np.zeros(experts, np.int64)))
        if entry.sums.shape != (experts, x.shape[1]):
            raise BadInput(
                f"importance of {name}: had {entry.sums.shape} (experts, columns), now {(experts, x.shape[1])}"
            )
        entry.sums[expert] += (x * x).sum(axis=0)
        entry.counts[expert] += len(x)

    def means(self, name: str, width: int, experts: int = 1) -> np.ndarray | None:
        """Return the mean squares that an encoder weighs the columns with, float32 [experts, in].

        None where the matrix has no entry: it is then quantized without importance. An expert that saw no token, and
        one whose inputs were all zero, gets ones, so that every column counts the same; single zero columns stay zero.

        Raises
        ------
        BadInput
            Values that are not finite or below zero, or a number of columns other than experts * width.

        Against other code: llama.cpp does the same, but passes all-zero entries on, which makes its encoders (all but
        Q4_1, Q5_1 and Q8_0) store blocks of zeros.
        """
        if name not in self.entries:
            return None
        entry = self.entries[name]
        entry.check(name)
        if entry.sums.size != experts * width or experts % len(entry.counts):
            raise BadInput(
                f"importance of {name}: {entry.sums.size} values and {len(entry.counts)} counts do not fit "
                f"{experts} matrices of {width} columns"
            )
        sums = entry.sums.astype(np.float32).reshape(experts, width)
        counts = np.repeat(entry.counts, experts // len(entry.counts)).astype(np.float32)
        seen = (counts > 0) & (sums > 0).any(axis=1)
        means = np.ones_like(sums)
        means[seen] = sums[seen] / counts[seen, None]
        return means
