"""Which raw objects in the parts of an hour are older versions: a later part has a newer one."""

from collections.abc import Collection, Mapping

from include.log_rollup.hour.manifest import ManifestReader
from include.log_rollup.hour.records import StoredMarker


def may_have_older_versions(manifest: ManifestReader, marker: StoredMarker | None) -> bool:
    """Whether parts may hold several versions of a raw object; the completion marker says if they do.

    :param marker: of the hour; None if there is none
    """
    is_complete = marker is not None and marker.is_of(manifest.totals.plan_id)
    return not is_complete or bool(marker and marker.content and marker.content.older_versions)


def find_older_versions(
    manifest: ManifestReader, marker: StoredMarker | None
) -> Mapping[str, Collection[int]]:
    """The indices of the raw objects that are older versions, by the name of their part.

    Reads the manifest once more if there may be any; see :meth:`ManifestReader.older_versions`.
    """
    return manifest.older_versions() if may_have_older_versions(manifest, marker) else {}
