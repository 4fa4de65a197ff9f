"""The cache: a folder that keeps encoded pictures and prompts, so that training runs share them and encode them once.

The key of an entry is a hash of everything that its content depends on, and every tensor has a checksum.
docs/explanation/cache.md explains the design.
"""

from qframe.cache.declared import DeclaredInputs
from qframe.cache.examples import CachedExamples, build_cache
from qframe.cache.keys import ExampleKeys, Ingredients, KeyMaker, PictureDigests, loss_map_key, pixel_key, text_key
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
    "loss_map_key",
    "pixel_key",
    "text_key",
]
