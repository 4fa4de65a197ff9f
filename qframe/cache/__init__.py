"""What encoder and codec made of a data set, kept: content-addressed, checksummed, shared between runs.

See docs/explanation/cache.md.
"""

from qframe.cache.declared import DeclaredInputs
from qframe.cache.examples import CachedExamples, build_cache
from qframe.cache.keys import ExampleKeys, Ingredients, KeyMaker, PictureDigests, pixel_key, text_key, weight_key
from qframe.cache.share import WHOLE, Share
from qframe.cache.store import Cache, CacheStats, Damage, DamagedEntryError

__all__ = [
    "WHOLE",
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
    "Share",
    "build_cache",
    "pixel_key",
    "text_key",
    "weight_key",
]
