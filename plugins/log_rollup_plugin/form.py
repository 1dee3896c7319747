"""The trigger form of a stream's Dag: its parameters, cheap enough for a thousand Dags."""

from typing import Any

from airflow.sdk import Param

HOUR_SCHEMA = {"type": ["null", "string"], "format": "date-time", "title": "Hour"}
HOUR_TEXT = "The UTC hour to roll up, like 2026-11-23T08:00:00Z; empty for the run's own hour."
DROP_VANISHED_SCHEMA = {"type": "boolean", "title": "Drop vanished objects"}
DROP_VANISHED_TEXT = (
    "Roll up an hour again even if raw objects of it have vanished since it was proven: its parts lose what they "
    "hold of them."
)


class FormParam(Param):
    """A Param whose default is valid and whose schema never changes.

    Airflow 3.3.2 validates the default of each Dag's Param, and its schema too, which takes 1 ms, and copies the
    schema for each operator and each class that it derives from. Here the schema is shared, and only values that
    a run gives are validated.
    """

    # Not in __dict__, which Airflow dumps.
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


# Airflow knows what it has to serialise as a Param by the name of its class.
FormParam.__module__, FormParam.__name__ = Param.__module__, Param.__name__


def hour_form() -> dict[str, Param]:
    """The parameters of one Dag; a run changes their values, so each Dag has its own."""
    return {
        "hour": FormParam(None, HOUR_TEXT, HOUR_SCHEMA),
        "drop_vanished": FormParam(False, DROP_VANISHED_TEXT, DROP_VANISHED_SCHEMA),
    }
