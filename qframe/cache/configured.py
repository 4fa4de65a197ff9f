"""Names what the components that encode for the cache are made of."""

from __future__ import annotations

from collections.abc import Sequence

from qframe.cache.keys import Ingredients
from qframe.compose import Composition
from qframe.files.digests import DigestStore, FileDigests
from qframe.progress import SILENT, Progress


def made_by(
    composition: Composition,
    store: DigestStore | None = None,
    progress: Progress = SILENT,
    *,
    roles: Sequence[str] = ("encoder", "codec"),
) -> dict[str, Ingredients]:
    """Return the ingredients of each role's component: by name, everything that the component's output depends on.

    Args:
        composition: The components of the model.
        store: Keeps digests of files between runs. If it is None, the weights of all these components are read and
            hashed.
        progress: Is told how far the hashing of weights has come.
        roles: The roles whose components are asked, for example "encoder".
    """
    digests = FileDigests(store)
    found: dict[str, Ingredients] = {role: composition.ingredients(role, progress, digests) for role in roles}
    digests.save()
    return found
