"""Token ids of texts: a vocabulary trained on a corpus, by the `tokenizers` library."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

UNKNOWN = "<unk>"
REPEATED = 1.25  # average uses of a word, at least; in languages without spaces every text is a word of its own


class Vocabulary:
    """Encodes texts to ids and back."""

    end: int | None = None  # it has no end token: all continuations have one length

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        # In parts, because encodings also hold strings and offsets: gigabytes for a large corpus.
        return [
            encoding.ids
            for start in range(0, len(texts), 1000)
            for encoding in self.tokenizer.encode_batch(list(texts[start : start + 1000]), add_special_tokens=False)
        ]

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        return self.tokenizer.decode_batch([list(row) for row in ids], skip_special_tokens=False)

    def save(self, path: Path) -> None:
        self.tokenizer.save(str(path))


def load_vocabulary(path: Path) -> Vocabulary:
    return Vocabulary(Tokenizer.from_file(str(path)))


def train_vocabulary(texts: Sequence[str], size: int) -> Vocabulary:
    """One token for each word if the corpus has at most `size` distinct words and repeats them, as in languages that are
    written with spaces; else byte-level BPE with `size` tokens. "<unk>" stands for unknown words."""
    used = Counter(chain.from_iterable(text.split() for text in texts))
    words = set(used) - {UNKNOWN}
    if len(words) < size and used.total() >= REPEATED * len(words):
        ids = {word: i for i, word in enumerate([UNKNOWN, *sorted(words)])}
        tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return Vocabulary(tokenizer)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(tokenizer)
