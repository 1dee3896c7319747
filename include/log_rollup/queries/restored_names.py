"""The names under which raw objects are restored: their own, without the extension if they were recompressed."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import PackedPart
from include.log_rollup.hour.selection import encoding_of

UNPACKED = ".unpacked"
"""Added to the name of a recompressed object whose name without the extension another object has."""


def unpacked_name(key: str) -> str:
    """The key of a recompressed object without its extension: ``a.log.gz`` becomes ``a.log``.

    Random letters that a producer appends stay: ``a.log.gz-Xy12`` becomes ``a.log-Xy12``.
    """
    dot = key.rfind(".")
    return key[:dot] + key[dot + len(encoding_of(key)) :]


def names_of_conflicts(parts: Callable[[], Iterable[tuple[PlannedPart, PackedPart]]]) -> Mapping[str, str]:
    """Names of the recompressed objects of an hour that cannot have :func:`unpacked_name`, by key; usually none.

    An object is restored under the same name whichever others are restored.

    :param parts: reads all parts of the hour; called up to three times
    """
    # A key occurs twice if parts hold several versions of the object.
    unpacked = Counter(map(unpacked_name, {key for key, recompressed in _objects(parts()) if recompressed}))
    own = {key for key, is_recompressed in _objects(parts()) if not is_recompressed and key in unpacked}
    conflicts = {name for name, count in unpacked.items() if count > 1 or name in own or name.endswith("/")}
    if not conflicts:
        return {}
    keys = list(dict(_objects(parts())).items())
    taken = {key for key, is_recompressed in keys if not is_recompressed} | unpacked.keys()
    names = {}
    for key, is_recompressed in keys:
        if is_recompressed and unpacked_name(key) in conflicts:
            name = key + UNPACKED
            while name in taken:
                name += UNPACKED
            names[key] = name
            taken.add(name)
    return names


def _objects(parts: Iterable[tuple[PlannedPart, PackedPart]]) -> Iterable[tuple[str, bool]]:
    for planned, packed in parts:
        for item, done in zip(planned.objects, packed.objects, strict=True):
            yield item.key, done.content is not None
