"""The task imdb with everything that it trains beforehand, in a second: for campaigns that repeat it a hundred times."""

from gradebench.tasks import imdb
from gradebench.tasks.corpora import Corpus
from gradebench.tasks.grammar import generate_reviews

SIZE = imdb.Size(
    width=8,
    layers=1,
    heads=2,
    vocabulary=300,
    prompt=5,
    horizon=2,
    prompts=32,
    policy_steps=20,
    reward_steps=20,
    steps=20,
)


class Small(imdb.Imdb):
    """A thousand reviews of the grammar, and models of width 8."""

    @property
    def size(self) -> imdb.Size:
        return SIZE

    def _read_corpus(self, log, strict) -> Corpus:
        reviews = generate_reviews(1000, self.seed)
        labels = imdb.np.array([review.label for review in reviews], dtype=imdb.np.int8)
        return Corpus("embedded", [review.text for review in reviews], labels, [review.film for review in reviews])
