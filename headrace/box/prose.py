"""Sentences from a small grammar: filler for retrieval tasks and text to copy. Standard library only."""

from __future__ import annotations

from random import Random

NAMES = tuple(
    """
    Anna Bruno Clara David Elena Felix Greta Hugo Irene Jonas Karin Leo Marta Nils Olga Peter Rosa Simon
    Tara Victor Wanda Yusuf Zoe Amir
    """.split()
)
PLACES = tuple(
    """
    Oslo Rome Lima Cairo Paris Delhi Quito Kyoto Berne Riga Sofia Turin Porto Accra Hanoi Milan
    """.split()
)
COLOURS = tuple(
    """
    red green blue white black yellow brown grey purple orange
    """.split()
)
NOUNS = tuple(
    """
    river mill wheel stone bridge garden window letter boat horse lamp table forest road market clock
    basket hammer field tower ladder kettle rope barrel candle mirror pencil cart fence valley island
    harbour cellar orchard bucket needle pocket blanket drum violin engine turbine channel dam lake
    meadow village station ticket parcel
    """.split()
)
ADJECTIVES = tuple(
    """
    old small quiet heavy bright narrow broken warm cold empty long deep wooden round clean early
    distant simple strange gentle
    """.split()
)
VERBS = tuple(
    """
    sees carries finds paints follows repairs opens closes watches sells buys moves lifts draws cleans
    hides counts measures builds passes
    """.split()
)
PREPOSITIONS = tuple(
    """
    near behind beside under above beyond inside across
    """.split()
)
TIMES = tuple(
    "in the morning, at noon, in the evening, at night, every day, on Monday, "
    "in winter, after the rain, before dawn, once a year".split(", ")
)


def noun_phrase(rng: Random) -> str:
    """`the mill`, `the old mill`, `a red boat`."""
    article = rng.choice(("the", "the", "a"))
    noun = rng.choice(NOUNS)
    if rng.random() < 0.5:
        adjective = rng.choice(ADJECTIVES if rng.random() < 0.7 else COLOURS)
        if article == "a" and adjective[0] in "aeiou" or article == "a" and noun[0] in "aeiou":
            article = "the"
        return f"{article} {adjective} {noun}"
    return f"the {noun}"


def sentence(rng: Random) -> str:
    """One sentence of 4 to 16 words, with a capital and a full stop."""
    subject = rng.choice(NAMES) if rng.random() < 0.5 else noun_phrase(rng)
    verb = rng.choice(VERBS)
    text = f"{subject} {verb} {noun_phrase(rng)}"
    if rng.random() < 0.5:
        text += f" {rng.choice(PREPOSITIONS)} {noun_phrase(rng)}"
    if rng.random() < 0.3:
        text += f" in {rng.choice(PLACES)}"
    if rng.random() < 0.3:
        text += f" {rng.choice(TIMES)}"
    return text[0].upper() + text[1:] + "."


def sentences(rng: Random, words: int) -> list[str]:
    """Sentences of `words` words in total, give or take one sentence; at least one."""
    made: list[str] = []
    count = 0
    while count < words or not made:
        made.append(sentence(rng))
        count += made[-1].count(" ") + 1
    return made
