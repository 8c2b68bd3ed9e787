"""Minimal pairs of English sentences from a small grammar: the same at every call, on a machine that has nothing else.

Both sentences of a pair have the same words in another order, or differ in one word; only one of them is English. The
phenomena are those of BLiMP (Warstadt et al. 2020): agreement over what stands between, order, and negation. No torch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

Pair = tuple[str, str]

# Pairs of each phenomenon.
PAIRS = 200

NOUNS = (
    ("man", "men"), ("woman", "women"), ("child", "children"), ("friend", "friends"), ("king", "kings"),
    ("teacher", "teachers"), ("soldier", "soldiers"), ("doctor", "doctors"), ("writer", "writers"), ("boy", "boys"),
)  # fmt: skip
THINGS = (
    ("house", "houses"), ("book", "books"), ("letter", "letters"), ("road", "roads"), ("tree", "trees"),
    ("river", "rivers"), ("city", "cities"), ("ship", "ships"), ("table", "tables"), ("door", "doors"),
)  # fmt: skip
ADJECTIVES = ("old", "young", "good", "great", "small", "happy", "strong", "poor")
PLACES = ("near", "behind", "beside", "above", "under")
# As one does it, as many do, as it was done.
ACTS = (("sees", "see", "seen"), ("finds", "find", "found"), ("wants", "want", "wanted"), ("knows", "know", "known"),
        ("likes", "like", "liked"), ("needs", "need", "needed"))  # fmt: skip
STATES = (("is", "are"), ("was", "were"), ("has been", "have been"))


def agreement(draw: random.Random) -> Pair:
    """The verb agrees with its subject, and not with the noun between: the king near the trees is old."""
    number = draw.randrange(2)
    subject, between = draw.choice(NOUNS)[number], draw.choice(THINGS)[draw.randrange(2)]
    state, adjective = draw.choice(STATES), draw.choice(ADJECTIVES)
    begin = f"The {subject} {draw.choice(PLACES)} the {between}"
    return f"{begin} {state[number]} {adjective}.", f"{begin} {state[1 - number]} {adjective}."


def order(draw: random.Random) -> Pair:
    """An adjective comes before its noun, and a preposition before its phrase."""
    number = draw.randrange(2)
    subject, thing = draw.choice(NOUNS)[number], draw.choice(THINGS)[draw.randrange(2)]
    if draw.random() < 0.5:
        adjective, act = draw.choice(ADJECTIVES), draw.choice(ACTS)[number]
        return f"The {adjective} {subject} {act} the {thing}.", f"The {subject} {adjective} {act} the {thing}."
    place, state = draw.choice(PLACES), draw.choice(STATES)[number]
    return f"The {subject} {state} {place} the {thing}.", f"The {subject} {state} the {thing} {place}."


def negation(draw: random.Random) -> Pair:
    """`ever` needs a negation before it, and `not` stands behind the auxiliary."""
    (one, many), (thing, _), (_, _, done) = draw.choice(NOUNS), draw.choice(THINGS), draw.choice(ACTS)
    if draw.random() < 0.5:
        rest = f"{one} has ever {done} the {thing}."
        return f"No {rest}", f"Some {rest}"
    begin = f"The {many}"
    return f"{begin} have not {done} the {thing}.", f"{begin} not have {done} the {thing}."


PHENOMENA: Mapping[str, Callable[[random.Random], Pair]] = {
    "agreement": agreement,
    "order": order,
    "negation": negation,
}


def pairs() -> dict[str, list[Pair]]:
    """Return by phenomenon its pairs (the English sentence, the other), none of them twice."""
    return {name: _distinct(make, random.Random(name)) for name, make in PHENOMENA.items()}


def _distinct(make: Callable[[random.Random], Pair], draw: random.Random) -> list[Pair]:
    found: dict[Pair, None] = {}  # in order
    while len(found) < PAIRS:
        found[make(draw)] = None
    return list(found)
