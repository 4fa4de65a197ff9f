"""What encoder and codec made of a data set, kept: content-addressed, checksummed, shared between runs.

See docs/explanation/cache.md.
"""

from qframe.cache.examples import CachedExamples, build_cache
from qframe.cache.keys import ExampleKeys, KeyMaker, PictureDigests, pixel_key, text_key, weight_key
from qframe.cache.store import Cache, CacheStats, Damage, DamagedEntryError

__all__ = [
    "Cache",
    "CacheStats",
    "CachedExamples",
    "Damage",
    "DamagedEntryError",
    "ExampleKeys",
    "KeyMaker",
    "PictureDigests",
    "build_cache",
    "pixel_key",
    "text_key",
    "weight_key",
]
