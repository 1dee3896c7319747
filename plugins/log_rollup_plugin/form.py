"""The trigger form of a stream's Dag: parameters that parse fast enough for a thousand Dags."""

from typing import Any

from airflow.sdk import Param

HOUR_SCHEMA = {"type": ["null", "string"], "format": "date-time", "title": "Hour"}
HOUR_TEXT = "The UTC hour to roll up, like 2026-11-23T08:00:00Z. Leave it empty for the run's own hour."
DROP_VANISHED_SCHEMA = {"type": "boolean", "title": "Drop vanished objects"}
DROP_VANISHED_TEXT = (
    "Roll the hour up again even if some of its raw objects no longer exist. Their content is then removed from "
    "the parts."
)
REPACK_SCHEMA = {"type": "boolean", "title": "Pack the whole hour again"}
REPACK_TEXT = (
    "Pack the whole hour again with the stream's present settings, instead of keeping the parts whose raw objects "
    "are unchanged. Parts with expired raw objects are kept."
)


class FormParam(Param):
    """A Param with a valid default and a constant schema, neither of which is validated again.

    Airflow 3.3.2 validates default and schema of each Dag's Param, which takes 1 ms, and copies the schema for
    each operator and each of its base classes. Here all Dags share the schema, and only values of a run are
    validated.
    """

    # A slot, because Airflow serialises what is in __dict__.
    __slots__ = ("_default",)

    def __init__(self, default: Any, description: str, schema: dict[str, Any]) -> None:
        super().__init__(default, description, schema=schema)
        self._default = default

    def resolve(self, *value: Any, **options: Any) -> Any:
        """The value, validated unless it is the default; see :meth:`airflow.sdk.Param.resolve`."""
        if not value and "value" not in options and self.value is self._default:
            return self.value
        return super().resolve(*value, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Param:
        return self.__copy__()


# Airflow recognises a Param by the name of its class when it serialises a Dag.
FormParam.__module__, FormParam.__name__ = Param.__module__, Param.__name__


def hour_form() -> dict[str, Param]:
    """The parameters of one Dag. Each Dag needs its own, because a run changes their values."""
    return {
        "hour": FormParam(None, HOUR_TEXT, HOUR_SCHEMA),
        "drop_vanished": FormParam(False, DROP_VANISHED_TEXT, DROP_VANISHED_SCHEMA),
        "repack": FormParam(False, REPACK_TEXT, REPACK_SCHEMA),
    }
