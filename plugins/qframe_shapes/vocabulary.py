"""The words that are one token each in the embedded tokenizer: those of the data set, and others that people type."""

import re
from collections.abc import Iterator

from qframe_shapes import tasks, world

EVERYDAY = """
a an the this that these those it its them and or not no with without of on in at to from into onto by for as is are be
one two three four five both all every each another other same than then there here now only just please can could you i
me my we our make makes making made turn turns change changes changed put puts add adds remove removes delete deletes
erase paint paints draw draws fill color colour colors colours coloured colored recolour recolor replace replaces swap
move moves keep set give take away picture image photo scene drawing background foreground canvas shape shapes object
objects thing figure circle circles square squares triangle triangles cross crosses rectangle ring star dot dots disc
line border frame spot hole outline edge corner side middle centre center left right top bottom upper lower above below
up down over under between beside next near inside outside around opposite half whole empty plain nothing small large
big little tiny huge bigger smaller larger light dark bright pale deep white black grey gray brown red green blue yellow
orange cyan pink purple violet magenta teal navy gold silver teal lime beige striped blurry blur noisy sharp clean
low high quality bad good ugly wrong different instead again still very more less most least new old first last mark
hello test example cat dog house tree sky sun moon water hat man woman face hand text sign car road mountain sea flower
describe detail size texture quantity spatial relationships system user assistant instruction
"""

PUNCTUATION = ". , ; : ! ? - ' \" ( ) / & + * #"


def world_phrases() -> Iterator[str]:
    """Yield all templates of captions and instructions without placeholders, then all words that can fill those."""
    templates = [*tasks.CAPTIONS, *tasks.EMPTY_CAPTIONS, *tasks.PLACE_WORDS.values()]
    templates += [template for group in tasks.INSTRUCTIONS.values() for template in group]
    for template in templates:
        yield re.sub(r"\{\w+\}", "", template)
    yield from (*world.SHAPES, *world.SIZES, *world.PALETTE, *world.PLACES)


def training_words() -> list[str]:
    """Return all words of this module and of the data set, sorted, in lower case and with a capital first letter."""
    words: set[str] = set(EVERYDAY.split())
    for phrase in world_phrases():
        words.update(re.findall(r"[a-z]+", phrase.lower()))
    return sorted(words | {word.capitalize() for word in words})
