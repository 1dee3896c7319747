"""Links from a task in Airflow's UI to its hour, and to the hour's manifest and completion marker."""

from typing import Any

from airflow.sdk import BaseOperatorLink


class _AttributeLink(BaseOperatorLink):
    """A link whose URL the operator stores in an attribute; Airflow reads that after the task has ended."""

    attribute: str

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The URL; empty if the task failed before it was stored."""
        return str(getattr(operator, self.attribute, ""))


class HourLink(_AttributeLink):
    """To the hour on the page Hours."""

    name = "Hour"
    attribute = "hour_page"


class ManifestLink(_AttributeLink):
    """To the hour's ``_manifest.jsonl.gz``."""

    name = "Manifest"
    attribute = "manifest_page"


class MarkerLink(_AttributeLink):
    """To the hour's ``_SUCCESS``."""

    name = "_SUCCESS"
    attribute = "marker_page"
