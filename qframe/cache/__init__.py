"""The cache keeps what encoder and codec made of a data set, by content and with checksums; runs share it.

See docs/explanation/cache.md.
"""

from qframe.cache.declared import DeclaredInputs
from qframe.cache.examples import CachedExamples, build_cache
from qframe.cache.keys import ExampleKeys, Ingredients, KeyMaker, PictureDigests, pixel_key, text_key, weight_key
from qframe.cache.portion import ALL, Portion
from qframe.cache.reading import DamagedEntryError
from qframe.cache.repair import Damage
from qframe.cache.store import Cache, CacheStats

__all__ = [
    "ALL",
    "Cache",
    "CacheStats",
    "CachedExamples",
    "Damage",
    "DamagedEntryError",
    "DeclaredInputs",
    "ExampleKeys",
    "Ingredients",
    "KeyMaker",
    "PictureDigests",
    "Portion",
    "build_cache",
    "pixel_key",
    "text_key",
    "weight_key",
]
