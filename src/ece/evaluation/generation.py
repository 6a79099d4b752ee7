"""Metrics of longer generated texts: fluency (Eq. 26) and consistency with reference texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ece.errors import UserError, requiring
from ece.models import Model
from ece.models.generate import Sampling, texts

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Of the entropies of bigrams and trigrams."""


@dataclass(frozen=True)
class Writing:
    """How the texts are written that fluency and consistency are measured on."""

    tokens: int = 100
    """Prompt and continuation together, as in the reference implementations; the model is not let end the text, since
    entropy grows with length."""

    top_k: int | None = 5
    """Each token is drawn from so many; None: always the most probable one."""

    seed: int = 0

    def write(self, model: Model, prompts: Sequence[str]) -> list[str]:
        """Each prompt with what the model writes after it."""
        return texts(
            model, prompts, self.tokens, rows=64, sampling=Sampling(self.top_k, self.seed) if self.top_k else None
        )


def words(text: str) -> list[str]:
    """Words and punctuation marks, in order: letters and digits, held together by single marks inside (`1,868`,
    `don't`, `200-year`), or one other character that is not a space.

    The reference implementations use nltk's `word_tokenize`, which needs a download; it differs in contractions
    (`do n't`) and abbreviations.
    """
    return re.findall(r"\w+(?:[-.,'’]\w+)*|[^\w\s]", text)


def entropy(tokens: Sequence[str], n: int) -> float:
    """Of the distribution of a text's n-grams, in bits; 0 where it has none."""
    counts = np.array(list(Counter(zip(*(tokens[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
    shares = counts / counts.sum()
    return float((shares * np.log2(1 / shares)).sum())


def fluency(text: str) -> float:
    """Half of 2/3 H(bigrams) + 4/3 H(trigrams), in bits (Eq. 26).

    The value of the reference implementations (ROME, MEMIT), which take the mean of the two weighted entropies, hence
    the half. As printed, Eq. 26 has its minus in front of the bigrams' sum only, so that the trigrams' entropy would
    be subtracted.
    """
    tokens = words(text)
    return sum(weight * entropy(tokens, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


class Consistency:
    """Cosine of the TF-IDF vectors of a record's generated texts and of its reference texts, each joined to one text.

    scikit-learn's `TfidfVectorizer` with its defaults, as in the reference implementations.
    """

    def __init__(self, corpus: Iterable[str]):
        """Fit the vectorizer.

        Args:
            corpus: documents that give the vocabulary and the inverse document frequencies.

        Raises:
            UserError: scikit-learn is not installed, or the corpus has no words.
        """
        with requiring("consistency", "eval"):
            from sklearn.feature_extraction.text import TfidfVectorizer
        self.vectorizer = TfidfVectorizer()
        try:
            self.vectorizer.fit(corpus)
        except ValueError as error:
            raise UserError(f"the reference texts have no words to compare ({error})") from error

    def __call__(self, texts: Sequence[str], references: Sequence[str]) -> float:
        """In [0, 1]; 0 for texts without a known word, NaN where the references have none."""
        text, reference = self.vectorizer.transform([" ".join(texts), " ".join(references)])
        return float((text @ reference.T).sum()) if reference.nnz else float("nan")
