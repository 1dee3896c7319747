"""The S3 servers start, serve and end as they should, and behave as the table in their module says."""

import base64
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from awscrt.checksums import crc64nvme
from botocore.exceptions import ClientError, SSLError

from dev.servers import MinistackServer, MotoServer, RcloneServer, S3Client, S3Server, ServerError
from dev.tls import TlsFiles
from tests.support.fixtures import BucketFactory
from tests.support.observe import is_running, with_descendants
from tests.support.raw_hours import ODD_NAMES, ODD_NAMES_BEYOND_FILES, odd_hour, put_objects

BODY = b"some log line\n" * 1000
WRONG_ETAG = f'"{"0" * 32}"'


def _code(call: Callable[[], object]) -> str | None:
    """The error code of a request, None if it succeeds."""
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


def _crc(body: bytes) -> str:
    return base64.b64encode(crc64nvme(body).to_bytes(8)).decode()


def _keys(client: S3Client, bucket: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 10})
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


@pytest.fixture(params=["rclone", "moto", "ministack"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Each of the three servers in turn."""
    server: S3Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.mark.parametrize("kind", [RcloneServer, MotoServer, MinistackServer])
def test_a_server_leaves_no_process_no_port_and_no_file(kind: type[S3Server], tls_files: TlsFiles) -> None:
    with kind(tls=tls_files) as server:
        server.create_bucket("bucket")
        assert server.client().list_buckets()["Buckets"][0]["Name"] == "bucket"
        with pytest.raises(SSLError):
            server.client(verify=Path(os.devnull)).list_buckets()
        group = with_descendants(os.getpid())()
        assert server.pid in group
        port, state_dir, pid = server.port, server.state_dir, server.pid
    assert not is_running(pid)
    assert server.pid == 0
    assert not state_dir.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_ends_with_whoever_started_it_even_if_that_is_killed() -> None:
    script = (
        "import time\n"
        "from dev.servers import RcloneServer\n"
        "server = RcloneServer()\n"
        "server.start()\n"
        "print(server.pid, server.state_dir, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": "."},
    ) as starter:
        assert starter.stdout is not None
        pid, state_dir = starter.stdout.readline().split()
        assert is_running(int(pid))
        starter.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_running(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "test-secret-key" not in Path(state_dir, "server.log").read_text()
    subprocess.run(["rm", "-r", state_dir], check=True)


def test_a_server_that_was_killed_comes_up_again_on_its_port_with_its_data() -> None:
    with RcloneServer() as server:
        server.create_bucket("bucket")
        client = server.client()
        client.put_object(Bucket="bucket", Key="key", Body=BODY)
        first = server.pid
        server.kill()
        assert not server.running
        assert not is_running(first)
        server.start()
        assert server.pid != first
        assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == BODY
        assert (server.data_dir / "bucket" / "key").read_bytes() == BODY
        with pytest.raises(ServerError, match="running already"):
            server.start()


def test_ministack_keeps_to_loopback_memory_and_its_folder(tmp_path: Path) -> None:
    with MinistackServer(tmp_path) as server:
        server.create_bucket("bucket")
        server.client().put_object(Bucket="bucket", Key="key", Body=BODY)
        connections = psutil.Process(server.pid).net_connections("inet")
        # The log and the file with its process id.
        files = sorted(path.name for path in tmp_path.rglob("*"))
        assert files == [f"ministack-{server.port}.pid", "server.log"]
        assert {address.ip for one in connections for address in (one.laddr, one.raddr) if address} == {
            "127.0.0.1"
        }
        assert [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN] == [server.port]
        server.stop()
        server.start()
        assert server.client().list_buckets()["Buckets"] == []


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    class Broken(RcloneServer):
        def command(self) -> list[str]:
            return [*super().command(), "--no-such-flag"]

    with pytest.raises(ServerError, match="unknown flag: --no-such-flag"):
        Broken(tmp_path).start()


def test_the_users_own_configuration_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLONE_READ_ONLY", "true")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with RcloneServer() as server:
        server.create_bucket("bucket")
        server.client().put_object(Bucket="bucket", Key="key", Body=BODY)


def test_the_airflow_connection_leads_to_the_server_or_around(
    rclone_server: RcloneServer, tls_files: TlsFiles
) -> None:
    plain = json.loads(rclone_server.airflow_connection_json())
    assert plain == {
        "conn_type": "aws",
        "login": rclone_server.access_key,
        "password": rclone_server.secret_key,
        "extra": {
            "region_name": "us-east-1",
            "endpoint_url": f"http://127.0.0.1:{rclone_server.port}",
            "config_kwargs": {"s3": {"addressing_style": "path"}},
        },
    }
    other = json.loads(
        rclone_server.airflow_connection_json("https://127.0.0.1:1", verify=tls_files.ca, role_arn="arn")
    )
    assert other["extra"]["endpoint_url"] == "https://127.0.0.1:1"
    assert (other["extra"]["verify"], other["extra"]["role_arn"]) == (str(tls_files.ca), "arn")


def test_a_bucket_is_removed_with_all_that_is_in_it(
    rclone_server: RcloneServer, moto_server: MotoServer, bucket_name: str
) -> None:
    for server in (rclone_server, moto_server):
        server.create_bucket(bucket_name)
        put_objects(server.client(), bucket_name, odd_hour("a/b/c/"))
        server.delete_bucket(bucket_name)
    assert not (rclone_server.data_dir / bucket_name).exists()
    assert _code(lambda: moto_server.client().list_objects_v2(Bucket=bucket_name)) == "NoSuchBucket"


def test_resetting_moto_forgets_everything() -> None:
    with MotoServer() as server:
        server.create_bucket("bucket")
        server.reset()
        assert server.client().list_buckets()["Buckets"] == []


def test_rclone_refuses_wrong_credentials(rclone_server: RcloneServer) -> None:
    unknown = rclone_server.client(access_key="another-access-key")
    wrong = rclone_server.client(secret_key="another-secret-key")
    assert _code(unknown.list_buckets) == "InvalidAccessKeyId"
    assert _code(wrong.list_buckets) == "SignatureDoesNotMatch"


def test_moto_takes_any_credentials_until_it_is_told_to_check(
    moto_server: MotoServer, make_bucket: BucketFactory
) -> None:
    bucket = make_bucket(moto_server)
    moto_server.client(access_key="another-access-key").put_object(Bucket=bucket, Key="key", Body=BODY)
    with moto_server.enforced_authentication("s3:GetObject", "s3:ListBucket") as (access_key, secret_key):
        allowed = moto_server.client(access_key=access_key, secret_key=secret_key)
        assert allowed.get_object(Bucket=bucket, Key="key")["Body"].read() == BODY
        assert allowed.list_objects_v2(Bucket=bucket)["KeyCount"] == 1
        assert _code(lambda: allowed.put_object(Bucket=bucket, Key="new", Body=BODY)) == "AccessDenied"
        wrong = moto_server.client(access_key=access_key, secret_key="another-secret-key")
        assert _code(lambda: wrong.get_object(Bucket=bucket, Key="key")) == "SignatureDoesNotMatch"
        unknown = moto_server.client()
        assert _code(lambda: unknown.get_object(Bucket=bucket, Key="key")) == "InvalidAccessKeyId"
    moto_server.client().put_object(Bucket=bucket, Key="new", Body=BODY)


def test_if_match_is_ignored_by_rclone_alone(s3_server: S3Server, bucket: str) -> None:
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="key", Body=BODY)
    refusal = None if isinstance(s3_server, RcloneServer) else "PreconditionFailed"
    assert _code(lambda: client.get_object(Bucket=bucket, Key="key", IfMatch=WRONG_ETAG)) == refusal
    assert _code(lambda: client.put_object(Bucket=bucket, Key="key", Body=b"", IfNoneMatch="*")) == refusal


def test_a_wrong_crc_is_refused_by_ministack_alone(s3_server: S3Server, bucket: str) -> None:
    client, wrong = s3_server.client(), _crc(b"other")
    code = _code(
        lambda: client.put_object(
            Bucket=bucket, Key="key", Body=BODY, ChecksumAlgorithm="CRC64NVME", ChecksumCRC64NVME=wrong
        )
    )
    if isinstance(s3_server, MinistackServer):
        assert code == "BadDigest"
        assert _keys(client, bucket) == []
    else:
        assert code is None
        head = client.head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
        assert head["ChecksumCRC64NVME"] == wrong


def test_ministack_checks_a_crc_only_with_its_algorithm(
    ministack_server: MinistackServer, make_bucket: BucketFactory
) -> None:
    bucket, client, wrong = make_bucket(ministack_server), ministack_server.client(), _crc(b"other")
    client.put_object(Bucket=bucket, Key="key", Body=BODY, ChecksumCRC64NVME=wrong)
    head = client.head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")
    assert head["ChecksumCRC64NVME"] == wrong


def test_moto_stores_a_crc_only_with_the_name_of_its_algorithm(
    moto_server: MotoServer, make_bucket: BucketFactory
) -> None:
    bucket, client = make_bucket(moto_server), moto_server.client()
    client.put_object(Bucket=bucket, Key="key", Body=BODY, ChecksumCRC64NVME=_crc(BODY))
    assert "ChecksumCRC64NVME" not in client.head_object(Bucket=bucket, Key="key", ChecksumMode="ENABLED")


def test_rclone_forgets_metadata_and_crc_when_it_is_restarted() -> None:
    with RcloneServer() as server:
        server.create_bucket("bucket")
        client = server.client()
        client.put_object(
            Bucket="bucket", Key="key", Body=BODY, Metadata={"plan": "1"}, ChecksumCRC64NVME=_crc(BODY)
        )
        before = client.head_object(Bucket="bucket", Key="key", ChecksumMode="ENABLED")
        server.stop()
        server.start()
        after = client.head_object(Bucket="bucket", Key="key", ChecksumMode="ENABLED")
    assert (before["Metadata"], before["ChecksumCRC64NVME"]) == ({"Plan": "1"}, _crc(BODY))
    assert (after["Metadata"], after.get("ChecksumCRC64NVME"), after["ETag"]) == ({}, None, before["ETag"])


def test_a_changed_copy_source_is_refused_by_ministack_alone(s3_server: S3Server, bucket: str) -> None:
    client, source = s3_server.client(), {"Bucket": bucket, "Key": "key"}
    client.put_object(Bucket=bucket, Key="key", Body=BODY)

    def copy() -> None:
        client.copy_object(Bucket=bucket, Key="copy", CopySource=source, CopySourceIfMatch=WRONG_ETAG)

    if isinstance(s3_server, MinistackServer):
        assert _code(copy) == "PreconditionFailed"
        assert _keys(client, bucket) == ["key"]
    else:
        copy()
        assert client.get_object(Bucket=bucket, Key="copy")["Body"].read() == BODY


def test_a_copy_keeps_content_metadata_and_crc(s3_server: S3Server, bucket: str) -> None:
    client = s3_server.client()
    client.put_object(
        Bucket=bucket, Key="key", Body=BODY, Metadata={"plan": "1"}, ContentType="text/x-log",
        ChecksumAlgorithm="CRC64NVME",
    )  # fmt: skip
    client.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "key"})
    copy = client.get_object(Bucket=bucket, Key="copy", ChecksumMode="ENABLED")
    assert copy["Body"].read() == BODY
    assert copy["ContentType"] == "text/x-log"
    assert copy["ChecksumCRC64NVME"] == _crc(BODY)
    assert {name.lower(): value for name, value in copy["Metadata"].items()}["plan"] == "1"


def test_a_copy_gets_a_crc_on_request_from_moto_alone(s3_server: S3Server, bucket: str) -> None:
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="key", Body=BODY)
    client.copy_object(
        Bucket=bucket,
        Key="copy",
        CopySource={"Bucket": bucket, "Key": "key"},
        ChecksumAlgorithm="CRC64NVME",
    )
    head = client.head_object(Bucket=bucket, Key="copy", ChecksumMode="ENABLED")
    assert ("ChecksumCRC64NVME" in head) == isinstance(s3_server, MotoServer)


def test_a_copy_of_a_missing_object_is_refused(s3_server: S3Server, bucket: str) -> None:
    client, source = s3_server.client(), {"Bucket": bucket, "Key": "missing"}
    code = _code(lambda: client.copy_object(Bucket=bucket, Key="copy", CopySource=source))
    assert code == "NoSuchKey"
    assert _keys(client, bucket) == []


def test_a_conditional_delete_is_ignored_by_rclone_alone(s3_server: S3Server, bucket: str) -> None:
    client = s3_server.client()
    etag = client.put_object(Bucket=bucket, Key="key", Body=BODY)["ETag"]
    refused = _code(lambda: client.delete_object(Bucket=bucket, Key="key", IfMatch=WRONG_ETAG))
    if isinstance(s3_server, RcloneServer):
        assert refused is None
    else:
        assert refused == "PreconditionFailed"
        assert _keys(client, bucket) == ["key"]
        client.delete_object(Bucket=bucket, Key="key", IfMatch=etag)
    assert _keys(client, bucket) == []


def test_a_wrong_md5_is_stored_by_moto_alone(s3_server: S3Server, bucket: str) -> None:
    md5 = base64.b64encode(bytes(16)).decode()
    code = _code(lambda: s3_server.client().put_object(Bucket=bucket, Key="key", Body=BODY, ContentMD5=md5))
    assert code == (None if isinstance(s3_server, MotoServer) else "BadDigest")


def test_metadata_that_a_copy_replaces_is_merged_by_rclone(s3_server: S3Server, bucket: str) -> None:
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="key", Body=BODY, Metadata={"old": "1"})
    client.copy_object(
        Bucket=bucket,
        Key="copy",
        CopySource={"Bucket": bucket, "Key": "key"},
        Metadata={"new": "2"},
        MetadataDirective="REPLACE",
    )
    found = {name.lower() for name in client.head_object(Bucket=bucket, Key="copy")["Metadata"]}
    assert found - {"mtime"} == ({"old", "new"} if isinstance(s3_server, RcloneServer) else {"new"})


def test_odd_keys_are_stored_and_listed_in_the_order_of_their_bytes(s3_server: S3Server, bucket: str) -> None:
    names = ODD_NAMES + (() if isinstance(s3_server, RcloneServer) else ODD_NAMES_BEYOND_FILES)
    objects = odd_hour("raw/", names)
    client = s3_server.client()
    put_objects(client, bucket, objects)
    assert _keys(client, bucket) == sorted(objects, key=str.encode)
    assert {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in objects} == objects


def test_rclone_refuses_keys_that_are_no_file_names(
    rclone_server: RcloneServer, make_bucket: BucketFactory
) -> None:
    bucket, client = make_bucket(rclone_server), rclone_server.client()
    client.put_object(Bucket=bucket, Key="file", Body=BODY)
    client.put_object(Bucket=bucket, Key="folder/within.log", Body=BODY)

    def refusal(name: str) -> str | None:
        return _code(lambda: client.put_object(Bucket=bucket, Key=name, Body=b""))

    for name in ("double//slash", "dot/./segment", "up/../segment"):
        assert refusal(name) == "InvalidArgument"
    for name in ("file/within.log", "folder", "n" * 256):
        assert refusal(name) == "InternalError"


def test_a_folder_placeholder_loses_its_slash_in_rclone(s3_server: S3Server, bucket: str) -> None:
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="raw/folder/", Body=b"")
    assert _keys(client, bucket) == ["raw/folder" if isinstance(s3_server, RcloneServer) else "raw/folder/"]


def test_moto_closes_every_connection_after_its_answer(s3_server: S3Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", s3_server.port, timeout=5)
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    assert answer.will_close == isinstance(s3_server, MotoServer)
    connection.close()


def test_a_part_copied_from_another_object_is_empty_in_rclone(s3_server: S3Server, bucket: str) -> None:
    client = s3_server.client()
    client.put_object(Bucket=bucket, Key="key", Body=BODY)
    upload = client.create_multipart_upload(Bucket=bucket, Key="copy")["UploadId"]
    assert [u["Key"] for u in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["copy"]
    client.upload_part_copy(
        Bucket=bucket, Key="copy", UploadId=upload, PartNumber=1, CopySource={"Bucket": bucket, "Key": "key"}
    )
    parts = client.list_parts(Bucket=bucket, Key="copy", UploadId=upload)["Parts"]
    assert [part["Size"] for part in parts] == [0 if isinstance(s3_server, RcloneServer) else len(BODY)]
    client.abort_multipart_upload(Bucket=bucket, Key="copy", UploadId=upload)
