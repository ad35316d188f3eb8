"""The baseline to beat: a token trigram model with Witten-Bell interpolation, from the same library text.

p(w | u v) = (c(u v w) + t(u v) p(w | v)) / (c(u v) + t(u v)), t(h) the number of distinct tokens seen after h, and so
down to the unigram and the uniform distribution (Witten and Bell 1991; Chen and Goodman 1999, section 2.4).
"""

from __future__ import annotations

import numpy as np


class Counts:
    """How often n-grams occur, and how often and before how many distinct tokens their first n-1 tokens do."""

    def __init__(self, grams: np.ndarray, vocabulary: int) -> None:
        self.grams, self.times = np.unique(grams, return_counts=True)
        contexts = self.grams // vocabulary
        self.contexts, first = np.unique(contexts, return_index=True)
        self.totals = np.add.reduceat(self.times, first)
        self.distinct = np.diff(np.append(first, len(contexts)))

    @staticmethod
    def find(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """values where keys == wanted, else 0; keys are sorted."""
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, values[at], 0)

    def mix(self, grams: np.ndarray, lower: np.ndarray, vocabulary: int) -> np.ndarray:
        """Probability of the last token of every n-gram, interpolated with `lower`."""
        contexts = grams // vocabulary
        total = self.find(self.contexts, self.totals, contexts)
        distinct = self.find(self.contexts, self.distinct, contexts)
        times = self.find(self.grams, self.times, grams)
        return np.where(total > 0, (times + distinct * lower) / np.maximum(total + distinct, 1), lower)


def trigram_bits(train_T: np.ndarray, test_T: np.ndarray, vocabulary: int) -> float:
    """Bits to code the test tokens, counts taken from the training tokens; the test starts after token 0, 0."""
    train, test = train_T.astype(np.int64), np.concatenate([[0, 0], test_T]).astype(np.int64)
    probability = np.full(len(test) - 2, 1.0 / vocabulary)
    for order in (1, 2, 3):
        known, asked = np.zeros(len(train) - order + 1, np.int64), np.zeros(len(test) - 2, np.int64)
        for i in range(order):
            known = known * vocabulary + train[i : len(train) - order + 1 + i]
            asked = asked * vocabulary + test[3 - order + i : len(test) - order + 1 + i]
        probability = Counts(known, vocabulary).mix(asked, probability, vocabulary)
    return float(-np.log2(probability).sum())
