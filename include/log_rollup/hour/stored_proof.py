"""Proves again that a part in the bucket has the bytes that were proven: :func:`stored_problem`."""

from include.log_rollup import crc
from include.log_rollup.errors import ArchivedError, InputChangedError, NotFoundError, ProofError
from include.log_rollup.hour.parts import part_problem, read_pieces, read_runs
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.records import PROVEN_BY_READING, PackedPart
from include.log_rollup.storage.protocol import Location, ObjectInfo, ObjectStore

_OVERWRITTEN = "it was overwritten or removed while it was proven"


def stored_problem(
    store: ObjectStore,
    paths: HourPaths,
    planned: PlannedPart,
    packed: PackedPart,
    listed: ObjectInfo | None,
    *,
    deep: bool = False,
) -> str | None:
    """What is wrong with a part of the manifest; None if it is proven again.

    Its size and ETag have to be those that were proven, both as listed and as a HEAD states them. If the store
    states a CRC, it has to be the right one. If it states none, a part that was read back when the hour was
    validated counts as proven by its ETag, and any other part is read. This needs no byte of an archived part.

    :param listed: the part as it is listed
    :param deep: read the part in any case, and compare its CRC; an archived part then is not proven
    :raises RollupError: as the store raises
    """
    problem = part_problem(planned, packed, listed)
    if problem:
        return problem
    if packed.crc64nvme is None:
        return "the manifest has no CRC of it"
    target = paths.part(packed.name)
    head = store.head(target)
    if head is None or (head.size, head.etag) != (packed.size, packed.etag):
        return _OVERWRITTEN
    if head.crc64nvme not in (None, packed.crc64nvme):
        return f"the store has CRC64NVME {head.crc64nvme:x}, {packed.crc64nvme:x} is in the manifest"
    if not deep and (head.crc64nvme is not None or packed.proof == PROVEN_BY_READING):
        return None
    try:
        return _problem_of_bytes(store, target, planned, packed)
    except (InputChangedError, NotFoundError):
        return _OVERWRITTEN
    except ArchivedError:
        return "it is archived, so that its bytes cannot be read"
    except ProofError as error:
        return str(error)


def _problem_of_bytes(
    store: ObjectStore, target: Location, planned: PlannedPart, packed: PackedPart
) -> str | None:
    value = 0
    for run, _ in read_pieces(store, target, planned, packed):
        value = crc.crc64(run, value)
    if value != packed.crc64nvme:
        return f"its bytes have CRC64NVME {value:x}, {packed.crc64nvme:x} is in the manifest"
    return None


def raw_crc(store: ObjectStore, source: Location, item: ObjectInfo) -> int | None:
    """CRC of a raw object, which is read; None if it has changed or vanished since it was listed.

    :raises ArchivedError: if it cannot be read, because it is in an archive class
    :raises RollupError: as the store raises
    """
    value = 0
    try:
        for run in read_runs(store, source, item.etag, item.size):
            value = crc.crc64(run, value)
    except (InputChangedError, NotFoundError):
        return None
    return value
