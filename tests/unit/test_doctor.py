"""doctor tries each operation that the tasks need, and explains what a missing operation means."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from include.log_rollup.errors import (
    AccessError,
    ConfigurationError,
    NotFoundError,
    PermanentError,
    TransientError,
    UnsupportedOperationError,
)
from include.log_rollup.expiry_options import ExpireRaw
from include.log_rollup.storage.protocol import Location
from include.log_rollup.units import MIB
from log_rollup_plugin.cli import doctor
from log_rollup_plugin.cli.doctor import Check, Outcome
from log_rollup_plugin.s3.error_mapping import from_network, from_response
from tests.support.fake_store import FakeStore
from tests.support.hour_in_memory import make_stream

RAW_KEY = "raw/app/20261123/08/a.log"


class Store(FakeStore):
    """A store in memory that has an endpoint and a region."""

    def meta(self, _: Location) -> SimpleNamespace:
        return SimpleNamespace(endpoint_url="http://s3", region_name="us-east-1")


Examine = Callable[..., dict[str, Check]]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Return a function that runs doctor's checks, by name, and checks that they leave no objects."""

    def check(store: FakeStore, **settings: Any) -> dict[str, Check]:
        store.produce(RAW_KEY, b"line\n")
        before = store.listing()

        @contextmanager
        def opened(*_: Any) -> Iterator[FakeStore]:
            yield store

        monkeypatch.setattr(doctor, "open_store", opened)
        checks = {one.check: one for one in doctor._bucket(make_stream(**settings))}
        assert store.listing() == before
        return checks

    return check


def not_implemented(operation: str) -> UnsupportedOperationError:
    error = from_response(operation, Location("logs", "k"), 501, "NotImplemented", "", {})
    assert isinstance(error, UnsupportedOperationError)
    return error


def test_store_with_all_operations_passes(examine: Examine) -> None:
    checks = examine(Store())
    assert list(checks) == [
        "list raw", "clock", "read raw", "list aggregated", "write aggregated", "write records",
        "read aggregated", "copy", "conditional delete", "remove aggregated", "CRC64-NVME", "open uploads",
    ]  # fmt: skip
    assert {check.state for name, check in checks.items() if name != "clock"} == {Outcome.OK}
    assert "refuses to copy an object that does not exist" in checks["copy"].found
    assert "deletes only objects with the given ETag" in checks["conditional delete"].found


def test_archive_class_is_checked_by_the_stated_crc(examine: Examine) -> None:
    checks = examine(Store(), storage_class="GLACIER")
    assert {check.state for name, check in checks.items() if name != "clock"} == {Outcome.OK}
    checks = examine(Store(keeps_crc=False, checks_crc=False), storage_class="GLACIER")
    failed = {name for name, check in checks.items() if check.state is Outcome.FAIL}
    assert failed - {"clock"} == {"read aggregated", "CRC64-NVME"}
    assert "could not be proven" in checks["CRC64-NVME"].found


def test_terms_and_warnings_of_a_storage_class_are_shown() -> None:
    stream = make_stream(storage_class="DEEP_ARCHIVE", part_size=5 * MIB)
    terms, warning = doctor._storage_class(stream)
    assert (terms.state, "180 days at least" in terms.found) == (Outcome.OK, True)
    assert (warning.state, "part_size: 5.0 MiB is small" in warning.found) == (Outcome.WARN, True)
    assert list(doctor._storage_class(make_stream())) == []


def test_store_without_copies_is_an_explained_warning(examine: Examine) -> None:
    store = Store()
    store.on("PUBLISH", "", not_implemented("COPY"))
    copy = examine(store)["copy"]
    assert (copy.state, "does not support the request (COPY)" in copy.found) == (Outcome.WARN, True)
    assert copy.remedy is not None
    assert "'part_size' cannot be rolled up" in copy.remedy


def test_copy_that_copies_nothing_fails(examine: Examine) -> None:
    class TreatsCopiesAsUploads(Store):
        def publish(self, source: Location, target: Location) -> None:
            self.write(target, b"", "")

    copy = examine(TreatsCopiesAsUploads())["copy"]
    assert (copy.state, "does not contain what has just been written" in copy.found) == (Outcome.FAIL, True)


def test_copy_of_a_missing_object_must_fail(examine: Examine) -> None:
    class CopiesMissingObjects(Store):
        def publish(self, source: Location, target: Location) -> None:
            try:
                super().publish(source, target)
            except NotFoundError:
                self.write(target, b"", "")

    copy = examine(CopiesMissingObjects())["copy"]
    assert (copy.state, "which does not exist" in copy.found) == (Outcome.FAIL, True)


def test_store_that_ignores_conditions_is_named(examine: Examine) -> None:
    class IgnoresConditions(Store):
        def delete_if(self, target: Location, etag: str) -> bool:
            self.delete(target.bucket, [target.key])
            return True

    delete = examine(IgnoresConditions())["conditional delete"]
    assert (delete.state, "ignores the ETag and deletes" in delete.found) == (Outcome.OK, True)


def test_refused_delete_that_deletes_fails(examine: Examine) -> None:
    class DeletesAnyway(Store):
        def delete_if(self, target: Location, etag: str) -> bool:
            self.delete(target.bucket, [target.key])
            return False

    delete = examine(DeletesAnyway())["conditional delete"]
    assert (delete.state, "although the server refused to delete it" in delete.found) == (Outcome.FAIL, True)


def test_records_are_tried_as_well_as_parts(examine: Examine) -> None:
    store = Store()
    store.on(
        "WRITE", "", PermanentError("x-amz-checksum HTTP header is required for Put Object with Object Lock")
    )
    checks = examine(store)
    assert checks["write aggregated"].state is Outcome.OK
    assert checks["write records"].state is Outcome.FAIL
    assert "remove aggregated" in checks


@pytest.mark.parametrize("kind", ["LIST", "PUT", "WRITE", "READ", "DELETE"])
def test_operation_that_the_store_lacks_is_named(examine: Examine, kind: str) -> None:
    store = Store()
    store.on(kind, "", not_implemented(kind))
    failed = [check for check in examine(store).values() if check.state is not Outcome.OK]
    assert any(f"does not support the request ({kind})" in check.found for check in failed)
    assert all("endpoint" not in (check.remedy or "") for check in failed)


def test_unreachable_store_points_to_the_endpoint(examine: Examine) -> None:
    store = Store()
    store.on(
        "LIST", "", from_network("LIST", Location("logs", "k"), ConnectionRefusedError("refused")), times=9
    )
    listed = examine(store)["list raw"]
    assert listed.remedy is not None
    assert "endpoint is right" in listed.remedy


@pytest.mark.parametrize(
    "error",
    [TransientError("S3 answered 500"), ConfigurationError("the server redirects"), AccessError("denied")],
)
def test_error_response_does_not_point_to_the_endpoint(examine: Examine, error: Exception) -> None:
    store = Store()
    store.on("LIST", "", error, times=9)
    listed = examine(store)["list raw"]
    assert listed.state is Outcome.FAIL
    assert "endpoint is right" not in (listed.remedy or "")


def test_uploads_that_cannot_be_listed_are_a_warning(examine: Examine) -> None:
    store = Store()
    store.on("UPLOADS", "", not_implemented("LIST UPLOADS"))
    assert examine(store)["open uploads"].state is Outcome.WARN


def test_large_objects_are_tried_with_two_connections(examine: Examine) -> None:
    large = examine(Store(), target_conn_id="other")["large objects"]
    assert (large.state, "in ranges" in large.found) == (Outcome.OK, True)


def test_large_objects_are_not_tried_with_one_connection(examine: Examine) -> None:
    assert "large objects" not in examine(Store(), target_conn_id="aws_default")


def test_failed_upload_of_a_large_object_is_aborted(examine: Examine) -> None:
    store = Store()
    store.on("FINISH", "", AccessError("denied"))
    assert examine(store, target_conn_id="other")["large objects"].state is Outcome.FAIL
    assert store.uploads == {}


def test_store_without_copies_takes_large_objects_by_upload(examine: Examine) -> None:
    store = Store()
    store.on("PUBLISH", "", not_implemented("COPY"))
    copy = examine(store, target_conn_id="other")["copy"]
    assert copy.state is Outcome.WARN
    assert "cannot be rolled up" not in str(copy.remedy)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, "allow s3:PutObject on arn:aws:s3:::logs/aggregated/app/* (deploy"),
        ({"tags": {"team": "search"}}, "allow s3:PutObject and s3:PutObjectTagging on arn:aws:s3:::logs/"),
        ({"target_conn_id": "other"}, "(deploy/iam-policy-aggregated.json)"),
        ({"kms_key_id": "alias/logs"}, "and kms:GenerateDataKey and kms:Decrypt on the key alias/logs"),
    ],
)
def test_refused_part_names_all_permissions(examine: Examine, settings: dict[str, Any], wanted: str) -> None:
    store = Store()
    store.on("PUT", "", AccessError("denied"))
    assert wanted in str(examine(store, **settings)["write aggregated"].remedy)


def test_refused_listing_of_raw_names_the_policy_for_raw(examine: Examine) -> None:
    store = Store()
    store.on("LIST", "raw/", AccessError("denied"))
    assert "(deploy/iam-policy-raw.json)" in str(examine(store, target_conn_id="other")["list raw"].remedy)


def expiring(**rules: Any) -> ExpireRaw:
    return ExpireRaw(after=timedelta(days=14), **rules)


def test_stream_without_expiry_is_not_probed_for_it(examine: Examine) -> None:
    assert {"expire_raw", "expiry deletes"}.isdisjoint(examine(Store()))


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (
            {},
            "mode: report: only says what can be deleted of hours from 2026-11-01 00:00 on, 14d after they have "
            "ended; with mode: delete, a person has to approve its first deletion",
        ),
        (
            {"mode": "delete", "since": datetime(2026, 10, 1, tzinfo=UTC), "approve_above": 1000},
            "mode: delete: deletes the raw objects of hours from 2026-10-01 00:00 on, 14d after they have ended; "
            "log_rollup_expire: a person has to approve its first deletion and runs that would delete more than "
            "1,000 objects",
        ),
        (
            {"mode": "delete", "approve_first": False},
            "mode: delete: deletes the raw objects of hours from 2026-11-01 00:00 on, 14d after they have ended; "
            "log_rollup_expire: without any approval",
        ),
    ],
)
def test_rules_of_the_expiry_are_shown(examine: Examine, rules: dict[str, Any], text: str) -> None:
    checks = examine(Store(), expire_raw=expiring(**rules))
    assert (checks["expire_raw"].state, checks["expire_raw"].found) == (Outcome.OK, text)
    assert checks["expiry deletes"].state is Outcome.OK
    assert "logs/aggregated/app/_log-rollup-delete-probe" in checks["expiry deletes"].found


@pytest.mark.parametrize(
    ("rules", "state", "text"),
    [
        ({"mode": "delete"}, Outcome.FAIL, "Nothing was deleted"),
        ({"mode": "report"}, Outcome.WARN, "Nothing was deleted"),
        ({"mode": "delete", "unconditional": True}, Outcome.OK, "which 'unconditional: true' accepts"),
    ],
)
def test_expiry_on_a_store_without_conditions(
    examine: Examine, rules: dict[str, Any], state: Outcome, text: str
) -> None:
    check = examine(Store(has_conditions=False), expire_raw=expiring(**rules))["expiry deletes"]
    assert (check.state, text in check.found) == (state, True)
    assert ("the expiry deletes nothing of this stream" in (check.remedy or "")) is (state is not Outcome.OK)


def test_permission_for_the_probe_of_the_expiry_is_named(examine: Examine) -> None:
    class Denies(Store):
        def deletes_on_condition(self, scratch: Location) -> bool:
            raise AccessError(f"WRITE {scratch}: AccessDenied")

    check = examine(Denies(), expire_raw=expiring(mode="delete"))["expiry deletes"]
    assert check.state is Outcome.FAIL
    assert check.remedy == (
        "allow s3:PutObject and s3:DeleteObject on "
        "arn:aws:s3:::logs/aggregated/app/_log-rollup-delete-probe (deploy/iam-policy-expire.json)"
    )
