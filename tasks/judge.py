"""The gold judge of real corpora: a bag-of-words model, unlike the reward model, trained on other reviews."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

# With hashing there is no vocabulary, so the judge is two arrays that are stored without pickle.
_FEATURES = 2**18


class BagOfWordsJudge:
    """The probability that a text is positive, by logistic regression on hashed words and word pairs."""

    def __init__(self, weight: NDArray[np.float64], bias: float):
        self.weight, self.bias = weight, bias
        self.vectorizer = HashingVectorizer(ngram_range=(1, 2), n_features=_FEATURES, alternate_sign=False)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        logit = self.vectorizer.transform(texts) @ self.weight + self.bias
        return 1 / (1 + np.exp(-logit))

    def save(self, path: Path) -> None:
        save_file({"weight": self.weight, "bias": np.array([self.bias])}, path)


def load_judge(path: Path) -> BagOfWordsJudge:
    arrays = load_file(path)
    return BagOfWordsJudge(arrays["weight"], float(arrays["bias"][0]))


def train_judge(texts: Sequence[str], labels: NDArray[np.int8]) -> BagOfWordsJudge:
    """A judge that is fitted to texts with labels 0 and 1."""
    untrained = BagOfWordsJudge(np.zeros(_FEATURES), 0.0)
    model = LogisticRegression(C=10.0, max_iter=300).fit(untrained.vectorizer.transform(texts), labels)
    return BagOfWordsJudge(model.coef_[0], float(model.intercept_[0]))
