"""Synthetic film reviews with exact sentiment: the corpus of `imdb` if the data hub can't be reached.

Generator and parser share one set of tables (`_SLOTS` and the clause templates below it): the generator fills the
templates, and the parser matches them. So the parser knows the true sentiment of any text, and a policy that exploits a
learned reward (one good word repeated, a negation that the reward ignores) gains no gold reward by it.

A text is sentences ended by "." or "!". A sentence is one clause or two:

    X .        X , and Y .        X , but Y .        although X , Y .        X , although Y .

and a clause is an instance of a template. Its score is the template's weight times the factors of its words:

    the plot is not very clever    =  1 * -1/2 (not) * 1 (very) * 1 (clever)  =  -1/2

The conceded side of a contrast counts one eighth, so the other side decides the sentence. Plot facts, names and visits
to the cinema have weight zero. All factors are dyadic fractions, so sums and ties are exact on every machine.

Only the standard library is used. Random numbers come only from `random.Random(seed).random()`, which Python guarantees
to be the same in every version; no order depends on a set or a hash.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeVar

_CONCEDED = 0.125  # below (1/2) / 3, weakest over strongest: a conceded clause can't outweigh its main clause

# Each line: slot, factor, words.
_WORDS = """
    adjective    1     good pleasant clever charming engaging fresh solid likeable amusing warm lively tender thoughtful
    adjective    1     witty sincere decent inventive elegant convincing
    adjective    2     superb brilliant wonderful magnificent outstanding masterful excellent stunning dazzling
    adjective    2     unforgettable terrific exquisite sublime splendid
    adjective    -1    dull flat clumsy weak bland slow tired shallow forced messy predictable boring stale noisy silly
    adjective    -1    confused lazy awkward hollow
    adjective    -2    awful terrible dreadful horrible unbearable atrocious abysmal insulting painful disastrous pathetic
    adjective    -2    worthless miserable hideous
    comparative  1     better funnier smarter richer stronger sharper warmer finer bolder
    comparative  -1    worse duller weaker slower sillier colder poorer thinner uglier
    verdict      2     masterpiece triumph delight gem treat joy classic winner marvel pleasure
    verdict      -2    disaster mess failure bore disgrace waste letdown flop disappointment fiasco
    quality      1     wit charm heart energy warmth style depth tension imagination grace
    quality      -1    boredom noise padding confusion nonsense tedium clumsiness vanity filler gloom
    affect       1     charm amuse impress surprise entertain touch
    affect       2     delight thrill captivate inspire enchant
    affect       -1    bore annoy irritate disappoint confuse tire
    affect       -2    insult exhaust disgust offend embarrass
    feel         1     enjoy like admire appreciate
    feel         2     love adore
    feel         -1    dislike resent
    feel         -2    hate loathe
    advise       1     recommend praise rewatch treasure
    advise       -1    avoid skip regret bury
    negation     -0.5  not hardly scarcely
    negation     -0.75 never
    degree       0.5   slightly
    degree       0.75  rather fairly
    degree       1     quite
    degree       1.25  very really truly
    degree       1.5   extremely utterly
    emphasis     1     very really truly particularly
    amount       1     more
    amount       -1    less
    seems        1     is was seems feels looks remains
    is           1     is was
    does         1     does did could will
    part         1     plot story script dialogue cast direction photography music humour ending pacing camerawork editing
    part         1     finale premise villain hero soundtrack film movie acting opening costume romance picture
    half         1     first second final
    reference    1     book sequel trailer original remake poster play novel
    audience     1     me us everyone viewers audiences children critics fans
    genre        1     thriller comedy drama western mystery musical fantasy documentary tragedy satire
    role         1     sailor baker detective widow teacher pilot nurse farmer thief painter lawyer soldier gardener singer
    place        1     lisbon prague cairo oslo havana vienna dublin kyoto naples boston bergen quito
    first_name   1     marta ivo selma tobin greta anselm petra lucan odile rufus nadia casper helga bruno thea viktor
    surname      1     hollin varga brandt okoro lindell moreau tanaka quill ferro novak dray castell falk sorel whitlow
    companion    1     brother sister mother father wife husband daughter neighbour
    weekday      1     monday tuesday wednesday thursday friday saturday sunday
    time         1     morning afternoon evening night
"""


def _slots(lines: str) -> dict[str, dict[str, float]]:
    """Slot -> word -> factor, with the slots that are derived from others."""
    slots: dict[str, dict[str, float]] = {}
    for line in lines.strip().splitlines():
        slot, factor, words = line.split(maxsplit=2)
        slots.setdefault(slot, {}).update(dict.fromkeys(words.split(), float(factor)))
    for past, verb in (("affected", "affect"), ("felt", "feel")):  # all verbs of both slots are regular
        slots[past] = {word + ("d" if word.endswith("e") else "ed"): factor for word, factor in slots[verb].items()}
    graded = slots["adjective"].items()
    slots["plain_adjective"] = {word: factor for word, factor in graded if word[0] not in "aeiou"}  # after "a"
    slots["long_adjective"] = {word: factor for word, factor in graded if len(word) > 7}  # after "more" and "less"
    for person in ("actor", "director"):
        slots[person], slots[f"{person}_surname"] = slots["first_name"], slots["surname"]
    return slots


_SLOTS = _slots(_WORDS)
# Facts of a film, which are the same in all its reviews.
_FILM_SLOTS = ("genre", "role", "place", "actor", "actor_surname", "director", "director_surname")

# Each line: frequency, weight, pattern.
_JUDGEMENTS = """
    10 1     the <part> <seems> <adjective>
    10 1     the <part> <seems> <degree> <adjective>
    6  1     the <part> <is> <adjective> in the <half> half
    3  1     the <part> <is> <negation> <adjective>
    3  -0.5  the <part> <is> not <emphasis> <adjective>
    1  -0.5  the <part> <is> anything but <adjective>
    1  -0.5  the <part> <is> far from <adjective>
    5  1     <actor> <actor_surname> <is> <adjective> as the <role>
    1  1     <actor> <actor_surname> <is> <negation> <adjective> as the <role>
    5  1     it <is> a <plain_adjective> <genre>
    1  1     it <is> <negation> a <plain_adjective> <genre>
    5  1     this <is> a <emphasis> <adjective> <genre> by <director> <director_surname>
    4  1     the <part> <is> a <verdict>
    1  1     the <part> <is> <negation> a <verdict>
    4  1     the <part> <is> <comparative> than the <reference>
    2  1.5   the <part> <is> far <comparative> than the <reference>
    1  1     the <part> <is> <negation> <comparative> than the <reference>
    1  -0.5  the <part> <is> no <comparative> than the <reference>
    2  1     the <part> <is> <amount> <long_adjective> than the <reference>
    5  1     the <part> <affected> <audience>
    2  1     the <part> manages to <affect> <audience>
    1  -0.5  the <part> fails to <affect> <audience>
    1  1     the <part> never fails to <affect> <audience>
    1  -0.5  the <part> <does> not <affect> <audience>
    5  1     i <felt> the <part>
    2  1.25  i really <felt> the <part>
    1  -0.5  i did not <feel> the <part>
    3  1     i would <advise> this <genre>
    1  1     i would <negation> <advise> this <genre>
    4  1     there <is> plenty of <quality> in the <part>
    1  -0.5  there <is> hardly any <quality> in the <part>
    4  1     the <part> <is> full of <quality>
    1  -0.5  the <part> <is> free of <quality>
    1  0.5   the <part> <is> not without <quality>
    1  -0.5  the <part> lacks <quality>
"""
# Expectations and hearsay aren't judgements: they have small weights, which the writer's own views outweigh.
_EXPECTATIONS = """
    2  0.25  i expected a <verdict>
    1  0.25  my <companion> had promised me a <verdict>
    1  0.25  the critics called it a <verdict>
    1  0.25  the <reference> made me expect a <verdict>
    1  0.25  everyone had told us to expect a <verdict>
"""
_FILLERS = """
    2  0     the story is set in <place>
    2  0     <actor> <actor_surname> plays a <role>
    2  0     <actor> <actor_surname> plays a <role> from <place>
    2  0     <director> <director_surname> directed the film
    1  0     <director> <director_surname> shot most of it in <place>
    1  0     the story follows a <role> who moves to <place>
    2  0     a <role> meets a stranger in <place>
    2  0     we saw it on a <weekday> <time>
    2  0     i watched it with my <companion>
    1  0     a <role> from <place> tells the story
    1  0     it was shown at the festival in <place>
"""
_LEADING_CONCESSIONS = ("although", "though", "while")  # "although X , Y": X is conceded
_JOINTS = {  # "X , joint Y": the weights of X and Y
    "and": (1.0, 1.0),
    "but": (_CONCEDED, 1.0),
    "yet": (_CONCEDED, 1.0),
    "although": (1.0, _CONCEDED),
    "though": (1.0, _CONCEDED),
}
_CONTRASTS = tuple(joint for joint in _JOINTS if joint != "and")
_SENTENCE_ENDS = (".", "!")


@dataclass(frozen=True)
class Review:
    """A generated review; `scores` are the scores of its clauses by the generator, in the order of `clauses`."""

    text: str  # lower-case tokens separated by single spaces
    label: int  # 1 positive, 0 negative
    film: str  # such as "film0123"
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Clause:
    """A clause of a text, its score, and its kind: "main", "conceded", "repeated" or "unparsed"."""

    tokens: tuple[str, ...]
    score: float
    reading: str


@dataclass(frozen=True)
class _Template:
    """A clause pattern: for each position a table of the allowed words (for a literal, of one word)."""

    weight: float
    slots: tuple[str, ...]  # slot name, or "" at a literal
    tables: tuple[dict[str, float], ...]
    words: tuple[tuple[str, ...], ...]  # the tables' words, for sampling
    pivot: int  # the last position with factors of both signs, which determines the clause's sign; -1 if there is none
    pivot_words: dict[bool, tuple[str, ...]]  # its words, True: with a positive factor


def _templates(lines: str) -> list[_Template]:
    """The templates of a table, each repeated according to its frequency, for uniform sampling."""
    templates: list[_Template] = []
    for line in lines.strip().splitlines():
        frequency, weight, *pattern = line.split()
        slots = tuple(item[1:-1] if item.startswith("<") else "" for item in pattern)
        tables = tuple(_SLOTS[slot] if slot else {item: 1.0} for slot, item in zip(slots, pattern, strict=True))
        two_signed = [index for index, table in enumerate(tables) if min(table.values()) < 0 < max(table.values())]
        pivot = two_signed[-1] if two_signed else -1
        graded = tables[pivot].items()
        pivot_words = {up: tuple(word for word, factor in graded if (factor > 0) == up) for up in (True, False)}
        template = _Template(float(weight), slots, tables, tuple(map(tuple, tables)), pivot, pivot_words)
        templates += [template] * int(frequency)
    return templates


def _indexed(templates: list[_Template]) -> dict[tuple[int, str], list[_Template]]:
    """Templates by length and first word, so that the parser has to try only a few."""
    index: dict[tuple[int, str], list[_Template]] = {}
    for template in templates:
        for first_word in template.tables[0]:
            bucket = index.setdefault((len(template.tables), first_word), [])
            if template not in bucket:
                bucket.append(template)
    return index


_JUDGEMENT_TEMPLATES = _templates(_JUDGEMENTS)
_EXPECTATION_TEMPLATES = _templates(_EXPECTATIONS)
_FILLER_TEMPLATES = _templates(_FILLERS)
_INDEX = _indexed(_JUDGEMENT_TEMPLATES + _EXPECTATION_TEMPLATES + _FILLER_TEMPLATES)


def vocabulary() -> tuple[str, ...]:
    """All tokens that can occur in generated reviews, sorted."""
    words = {word for bucket in _INDEX.values() for template in bucket for table in template.tables for word in table}
    return tuple(sorted(words | {",", *_SENTENCE_ENDS, *_LEADING_CONCESSIONS, *_JOINTS}))


# The parser.


def sentiment(text: str) -> float:
    """The true sentiment of any text, in [0, 1]: 1 positive, 0 negative, 1/2 if there is none or a tie.

    sentiment = 1 / (1 + exp(-S / 2)),  S = the sum of the scores of `clauses(text)`.

    A plain judgement ("the plot is clever") has score 1 and so sentiment 0.62, two strong ones ("superb") 0.88, four
    0.98. For generated reviews, the label is 1 if and only if the sentiment is above 1/2, and |S| is at least 1.
    """
    total = sum(clause.score for clause in clauses(text))
    return 0.5 + 0.5 * math.tanh(total / 4)  # the same function; exp would overflow on a long negative text


def clauses(text: str) -> list[Clause]:
    """The clauses of any text, with their scores; never raises.

    A clause that matches no template scores 0, so random words gain nothing. A clause that occurred earlier in the text
    scores 0 too, so repeating a good sentence gains nothing. In an unfinished last sentence, complete clauses count as in
    any other.
    """
    read: list[Clause] = []
    seen: set[tuple[str, ...]] = set()
    for is_end, sentence in groupby(text.split(), key=_SENTENCE_ENDS.__contains__):
        for tokens, share in [] if is_end else _divide(tuple(sentence)):
            score = _score(tokens)
            if score is None:
                read.append(Clause(tokens, 0.0, "unparsed"))
            elif tokens in seen:
                read.append(Clause(tokens, 0.0, "repeated"))
            else:
                read.append(Clause(tokens, share * score, "main" if share == 1 else "conceded"))
                seen.add(tokens)
    return read


def _divide(sentence: tuple[str, ...]) -> list[tuple[tuple[str, ...], float]]:
    """The clauses of a sentence, each with the weight of its score. No template contains a comma."""
    if sentence[0] in _LEADING_CONCESSIONS:
        comma = sentence.index(",") if "," in sentence else len(sentence)
        parts = [(sentence[1:comma], _CONCEDED), (sentence[comma + 1 :], 1.0)]
    else:
        parts = [(sentence, 1.0)]
        for index, (token, joint) in enumerate(pairwise(sentence)):
            if token == "," and joint in _JOINTS:
                left, right = _JOINTS[joint]
                parts = [(sentence[:index], left), (sentence[index + 2 :], right)]
                break
    return [part for part in parts if part[0]]


def _score(tokens: tuple[str, ...]) -> float | None:
    """The score of a clause by the first matching template; None if there is none."""
    for template in _INDEX.get((len(tokens), tokens[0]), ()):
        pairs = list(zip(tokens, template.tables, strict=True))
        if all(token in table for token, table in pairs):
            return math.prod((table[token] for token, table in pairs), start=template.weight)
    return None


# The generator.

_Item = TypeVar("_Item")
_Said = tuple[tuple[str, ...], float]  # a clause and its intended score

_WRONG_OPENING, _NEUTRAL_OPENING = 0.34, 0.22  # shares of first sentences against the label, and neutral ones
_OPENING_FORMS = ("expectation",) * 2 + ("judgement",) * 2 + ("contrast",)  # of first sentences that aren't neutral
_LATER_FORMS = ("judgement",) * 10 + ("filler",) * 5 + ("contrast",) * 3 + ("joined",) * 2
_DISSENT = 0.08  # share of later sentences against the label
_EXCLAIMED = 0.1  # share of sentences that end with "!"
_MARGIN = 1.0  # minimum |total score| of a review, so that labels are clear
_LEAST_LENGTHS = range(40, 59)  # a review ends with the sentence that reaches the drawn length; it has 40 to 80 tokens
_REVIEWS_OF_A_FILM = range(4, 13)


def generate_reviews(count: int, seed: int) -> list[Review]:
    """`count` distinct reviews, one film after the other; a smaller count gives the beginning of the same list.

    Each film has its own cast, place and quality. The quality, between 0.2 and 0.8, is the probability that a review is
    positive, so labels are balanced over films and mixed within each. Raises ValueError for a negative count.
    """
    if count < 0:
        raise ValueError(f"count is {count}: ask for 0 reviews or more")
    rng = random.Random(seed)
    reviews: dict[str, Review] = {}  # by text, because duplicates could be in two splits
    number = 0
    while len(reviews) < count:
        film = {slot: _choose(tuple(_SLOTS[slot]), rng) for slot in _FILM_SLOTS}
        quality = 0.2 + 0.6 * rng.random()
        for _ in range(_choose(_REVIEWS_OF_A_FILM, rng)):
            positive = rng.random() < quality
            text, scores = _compose(film, positive, rng)
            reviews.setdefault(text, Review(text, int(positive), f"film{number:04d}", scores))
        number += 1
    return list(reviews.values())[:count]


def _compose(film: dict[str, str], positive: bool, rng: random.Random) -> tuple[str, tuple[float, ...]]:
    """Text and clause scores of one review, drawn until its score is clearly on the requested side."""
    # Drawn once, because redrawing it with the rest would make openings against the label rarer.
    lean = rng.random()
    opening_sign = positive if lean >= _WRONG_OPENING else not positive
    opening_forms = _OPENING_FORMS if lean < 1 - _NEUTRAL_OPENING else ("filler",)
    while True:
        tokens, said = _sentence(_choose(opening_forms, rng), opening_sign, film, rng)
        least_length = _choose(_LEAST_LENGTHS, rng)
        while len(tokens) < least_length:
            sign = positive if rng.random() >= _DISSENT else not positive
            more_tokens, more_said = _sentence(_choose(_LATER_FORMS, rng), sign, film, rng)
            tokens, said = tokens + more_tokens, said + more_said
        scores = tuple(score for _, score in said)
        clear = sum(scores) * (1 if positive else -1) >= _MARGIN
        if clear and len({clause for clause, _ in said}) == len(said):  # repeated clauses wouldn't count
            return " ".join(tokens), scores


def _sentence(form: str, positive: bool, film: dict[str, str], rng: random.Random) -> tuple[list[str], list[_Said]]:
    """The tokens of a sentence with the requested sign, and its clauses with their scores."""
    end = "!" if rng.random() < _EXCLAIMED else "."
    alone = {"filler": _FILLER_TEMPLATES, "expectation": _EXPECTATION_TEMPLATES, "judgement": _JUDGEMENT_TEMPLATES}
    if form in alone:
        clause, score = _fill(alone[form], positive, film, rng)
        return [*clause, end], [(clause, score)]
    joint = "and" if form == "joined" else _choose(_CONTRASTS, rng)
    sides = []
    for share in _JOINTS[joint]:
        templates = _JUDGEMENT_TEMPLATES if share == 1 or rng.random() < 0.6 else _EXPECTATION_TEMPLATES
        clause, score = _fill(templates, positive == (share == 1), film, rng)
        sides.append((clause, share * score))
    (left, _), (right, _) = sides
    if _JOINTS[joint][0] < 1 and rng.random() < 0.5:
        return [_choose(_LEADING_CONCESSIONS, rng), *left, ",", *right, end], sides
    return [*left, ",", joint, *right, end], sides


def _fill(templates: list[_Template], positive: bool, film: dict[str, str], rng: random.Random) -> _Said:
    """A clause with the requested sign (zero if its template has no pivot), and its score."""
    template = _choose(templates, rng)
    score = template.weight
    tokens = []
    for position, (slot, table) in enumerate(zip(template.slots, template.tables, strict=True)):
        if position == template.pivot:  # no factor after it is negative: the sign is decided here
            token = _choose(template.pivot_words[positive == (score > 0)], rng)
        else:
            token = film.get(slot) or _choose(template.words[position], rng)
        score *= table[token]
        tokens.append(token)
    return tuple(tokens), score


def _choose(items: Sequence[_Item], rng: random.Random) -> _Item:
    return items[int(rng.random() * len(items))]
