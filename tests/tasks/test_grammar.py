"""The embedded corpus: what the generator promises, what the parser sees through, and that the two agree."""

import hashlib
import random
import time
from collections import defaultdict

import pytest

from gradebench.tasks.grammar import clauses, generate_reviews, sentiment, vocabulary

TRAINING_COUNT = 5000


@pytest.fixture(scope="module")
def reviews():
    return generate_reviews(7000, seed=0)


def scores(text):
    return [clause.score for clause in clauses(text)]


def readings(text):
    return [clause.reading for clause in clauses(text)]


def test_reviews_are_the_same_on_every_machine():
    # Pinned so that a change of the corpus is seen: it changes every number measured on it.
    lines = "\n".join(f"{review.film} {review.label} {review.text}" for review in generate_reviews(50, seed=7))
    assert (
        hashlib.sha256(lines.encode()).hexdigest() == "fbf489e19fc6dd1d54e6311e7ac7ca7093d436958e8354c2ae140180747ae96b"
    )


def test_smaller_count_gives_the_beginning_of_the_same_list(reviews):
    assert generate_reviews(321, seed=0) == reviews[:321]


def test_another_seed_gives_other_reviews(reviews):
    assert not {review.text for review in generate_reviews(200, seed=1)} & {review.text for review in reviews}


def test_negative_count_is_refused_with_its_value():
    with pytest.raises(ValueError, match="-3"):
        generate_reviews(-3, seed=0)


def test_labels_are_balanced(reviews):
    assert sum(review.label for review in reviews) / len(reviews) == pytest.approx(0.5, abs=0.03)


def test_label_is_the_side_of_the_sentiment_and_never_a_tie(reviews):
    for review in reviews[:2000]:
        assert abs(sum(review.scores)) >= 1
        assert (sentiment(review.text) > 0.5) == (review.label == 1)


def test_films_have_several_reviews_of_mixed_labels(reviews):
    labels = defaultdict(list)
    for review in reviews:
        labels[review.film].append(review.label)
    complete = list(labels.values())[:-1]  # the last film may be cut by the count
    assert min(map(len, complete)) >= 4
    assert sum(0 < sum(film) < len(film) for film in complete) / len(complete) > 0.8


def test_no_text_appears_twice(reviews):
    assert len({review.text for review in reviews}) == len(reviews)


def test_whitespace_tokenization_is_lossless_and_lengths_are_bounded(reviews):
    for review in reviews:
        tokens = review.text.split(" ")
        assert " ".join(tokens).lower() == review.text
        assert all(token.isalpha() or token in {",", ".", "!"} for token in tokens)
        assert 40 <= len(tokens) <= 80
        assert sum(token in {".", "!"} for token in tokens) >= 3
        assert tokens[-1] in {".", "!"}


def test_vocabulary_is_exactly_what_reviews_hold(reviews):
    assert {token for review in reviews for token in review.text.split()} == set(vocabulary())
    assert 350 <= len(vocabulary()) <= 600
    assert list(vocabulary()) == sorted(set(vocabulary()))


def test_parser_reads_every_clause_as_the_generator_meant_it(reviews):
    for review in reviews:
        assert scores(review.text) == list(review.scores)
        assert set(readings(review.text)) <= {"main", "conceded"}


@pytest.mark.parametrize(
    ("clause", "score"),
    [
        ("the plot is clever", 1),
        ("the plot is superb", 2),
        ("the plot is slightly superb", 1),
        ("the plot is extremely superb", 3),
        ("the plot is dull", -1),
        ("the plot seems utterly awful", -3),
        ("the plot is better than the book", 1),
        ("the plot is far worse than the book", -1.5),
        ("the plot is less brilliant than the book", -2),
        ("i expected a masterpiece", 0.5),
        ("i expected a disaster", -0.5),
    ],
)
def test_scores_are_graded(clause, score):
    assert scores(clause + " .") == [score]


@pytest.mark.parametrize(
    ("plain", "negated"),
    [
        ("the plot is clever", "the plot is not clever"),
        ("the plot is dull", "the plot is never dull"),
        ("the plot is really clever", "the plot is not really clever"),
        ("the plot is awful", "the plot is anything but awful"),
        ("it is a superb drama", "it is hardly a superb drama"),
        ("the plot is better than the book", "the plot is no better than the book"),
        ("the plot is more dreadful than the book", "the plot is less dreadful than the book"),
        ("the plot manages to surprise me", "the plot fails to surprise me"),
        ("the plot fails to bore me", "the plot never fails to bore me"),
        ("i liked the plot", "i did not like the plot"),
        ("i would avoid this drama", "i would never avoid this drama"),
        ("there is plenty of wit in the plot", "there is hardly any wit in the plot"),
        ("the plot is full of noise", "the plot is free of noise"),
        ("the plot lacks charm", "the plot is not without charm"),
    ],
)
def test_negation_flips_the_sign(plain, negated):
    assert readings(f"{plain} . {negated} .") == ["main", "main"]
    assert (sentiment(plain) - 0.5) * (sentiment(negated) - 0.5) < 0


@pytest.mark.parametrize(
    "sentence",
    [
        "although {conceded} , {main} .",
        "while {conceded} , {main} .",
        "{conceded} , but {main} .",
        "{conceded} , yet {main} .",
        "{main} , though {conceded} .",
    ],
)
@pytest.mark.parametrize(
    ("conceded", "main", "score"),
    [
        ("the plot is extremely awful", "the cast is slightly good", 0.5 - 3 / 8),
        ("the plot is extremely superb", "the cast lacks charm", 3 / 8 - 0.5),
    ],
)
def test_main_clause_outweighs_the_strongest_concession(sentence, conceded, main, score):
    text = sentence.format(conceded=conceded, main=main)
    assert sorted(readings(text)) == ["conceded", "main"]
    assert sum(scores(text)) == score


def test_main_clause_decides_every_generated_contrast(reviews):
    contrasts = 0
    for review in reviews[:2000]:
        for sentence in review.text.replace("!", ".").split(" ."):
            parts = clauses(sentence)
            if "conceded" in [part.reading for part in parts]:
                (main,) = (part.score for part in parts if part.reading == "main")
                assert sum(part.score for part in parts) * main > 0
                contrasts += 1
    assert contrasts > 500


@pytest.mark.parametrize(
    "filler",
    [
        "marta hollin plays a sailor",
        "we saw it on a monday evening",
        "the story is set in cairo",
        "i watched it with my wife",
    ],
)
def test_filler_is_read_and_counts_nothing(filler):
    assert readings(filler) == ["main"]
    assert sentiment(filler) == 0.5


def test_a_repeated_clause_counts_once():
    once = "the plot is clever ."
    assert sentiment(f"{once} " * 20) == sentiment(once)
    assert readings(f"{once} the cast is dull . though the plot is clever , the cast is flat !") == [
        "main",
        "main",
        "repeated",
        "main",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "wonderful " * 30,
        "wonderful . " * 30,
        "the plot is wonderful wonderful wonderful .",
        "the plot the cast superb is very .",
        "the plot is clever the cast is superb .",
        "the plot is superb , the cast is superb .",
        "not not clever .",
        "the plot is <unk> .",
    ],
)
def test_word_salad_earns_nothing(text):
    assert sentiment(text) == 0.5
    assert set(readings(text)) == {"unparsed"}


def test_shuffled_reviews_earn_nothing(reviews):
    generator = random.Random(0)
    for review in reviews[:300]:
        words = [token for token in review.text.split() if token not in {",", ".", "!"}]
        generator.shuffle(words)
        assert sentiment(" ".join(words)) == 0.5


def test_unparsed_clause_leaves_the_rest_of_the_text_alone():
    assert scores("the plot is clever . superb superb . though the cast sings , the hero is dull .") == [1, 0, 0, -1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" . ! . ", []),
        ("the plot is", [0]),
        ("the plot is not very", [0]),
        ("the plot is clever", [1]),
        ("the plot is dull . the cast is superb", [-1, 2]),
        ("the plot is clever ,", [0]),
        ("the plot is clever , but", [0.125]),
        ("the plot is clever , but the cast", [0.125, 0]),
        ("although the plot is clever", [0.125]),
        ("although the plot is clever ,", [0.125]),
        ("although", []),
    ],
)
def test_unfinished_sentence_counts_its_complete_clauses(text, expected):
    assert scores(text) == expected


def test_any_text_is_read_without_raising():
    generator = random.Random(0)
    odd = [
        "<unk>",
        "<pad>",
        "",
        "\n",
        "\x00",
        "é",
        "🎬",
        "THE",
        "...",
        ",",
        ",",
        ".",
        "although",
        "but",
        "the plot is clever",
    ]
    tokens = [*vocabulary(), *odd * 10]
    for _ in range(2000):
        text = " ".join(generator.choice(tokens) for _ in range(generator.randrange(40)))
        assert 0 <= sentiment(text) <= 1
        assert all(clause.tokens for clause in clauses(text))


def test_sentiment_stays_in_bounds_on_very_long_texts(reviews):
    for label in (0, 1):
        text = " ".join(review.text for review in reviews[:1000] if review.label == label)
        assert sentiment(text) == label


def test_bag_of_words_is_useful_but_clearly_imperfect(reviews):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = CountVectorizer(token_pattern=r"\S+")
    counts = vectorizer.fit_transform(review.text for review in reviews)
    labels = [review.label for review in reviews]
    model = LogisticRegression(max_iter=300, C=0.1).fit(counts[:TRAINING_COUNT], labels[:TRAINING_COUNT])
    assert 0.75 <= model.score(counts[TRAINING_COUNT:], labels[TRAINING_COUNT:]) <= 0.92


def test_a_third_of_reviews_open_against_their_label(reviews):
    openings = [sentiment(review.text.replace("!", ".").split(" .")[0]) for review in reviews]
    wrong = [(opening - 0.5) * (review.label - 0.5) < 0 for opening, review in zip(openings, reviews, strict=True)]
    assert 0.30 <= sum(wrong) / len(wrong) <= 0.38


def test_generator_and_parser_keep_up_with_training(reviews):
    begin = time.process_time()
    generate_reviews(2000, seed=3)
    assert time.process_time() - begin < 0.4  # 20,000 reviews in 4 s
    prefixes = [" ".join(review.text.split()[:30]) for review in reviews[:1000]]
    begin = time.process_time()
    for prefix in prefixes:
        sentiment(prefix)
    assert time.process_time() - begin < 0.2  # 5,000 calls in 1 s
