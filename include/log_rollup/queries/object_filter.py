"""Chooses raw objects of an hour by their names and groups: :class:`ObjectFilter`."""

from collections.abc import Iterable, Mapping, Sequence

from include.log_rollup.errors import ConfigurationError
from include.log_rollup.hour.layout import folder_of
from include.log_rollup.hour.paths import HourPaths
from include.log_rollup.hour.plan import PlannedPart
from include.log_rollup.hour.selection import InputRules
from include.log_rollup.streams import Stream


class ObjectFilter:
    """Which raw objects a command is about.

    :param patterns: globs for the name below the hour, as in the stream's ``include``; empty for all names
    :param groups: values by capture of the template ``aggregated``; a group needs one of the values of each
    :raises ConfigurationError: if the template has no such capture
    """

    def __init__(
        self, stream: Stream, patterns: Sequence[str] = (), groups: Iterable[tuple[str, str]] = ()
    ) -> None:
        self._rules = InputRules(include=tuple(patterns))
        values: dict[str, set[str]] = {}
        for name, value in groups:
            if name not in stream.aggregated.captures:
                known = ", ".join(stream.aggregated.captures)
                raise ConfigurationError(
                    f"stream {stream.name!r} has no groups by {name!r}: "
                    + (f"its groups are by {known}" if known else "its parts are not divided into groups")
                )
            values.setdefault(name, set()).add(value)
        self._values: Mapping[str, set[str]] = values

    @property
    def takes_all(self) -> bool:
        """Whether no object is left out."""
        return not self._rules.has_patterns and not self._values

    def indices(self, paths: HourPaths, planned: PlannedPart) -> Sequence[int]:
        """Which raw objects of a part are chosen, in the order of the part."""
        if not self._has_group(paths, planned):
            return ()
        everything = range(len(planned.objects))
        if not self._rules.has_patterns:
            return everything
        name_of, excludes = paths.name_of, self._rules.excludes
        return [index for index in everything if not excludes(name_of(planned.objects[index].key))]

    def takes(self, paths: HourPaths, key: str) -> bool:
        """Whether a raw object of the hour is chosen."""
        if self._rules.has_patterns and self._rules.excludes(paths.name_of(key)):
            return False
        return not self._values or self._has_values(paths, paths.folder_of_key(key))

    def _has_group(self, paths: HourPaths, planned: PlannedPart) -> bool:
        return not self._values or self._has_values(paths, folder_of(planned.name))

    def _has_values(self, paths: HourPaths, folder: str) -> bool:
        captures = paths.captures_of(folder)
        return all(captures.get(name) in values for name, values in self._values.items())
