"""The S3 servers start, serve and end cleanly, and check credentials where tests rely on it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, SSLError

from dev.servers import MinistackServer, MotoServer, RcloneServer, S3Server, ServerError
from dev.tls import TlsFiles
from tests.support.fixtures import BucketFactory
from tests.support.observe import is_running, with_descendants

BODY = b"some log line\n" * 1000


def _code(call: Callable[[], object]) -> str | None:
    """The error code of a request, None if it succeeds."""
    try:
        call()
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


@pytest.mark.parametrize("kind", [RcloneServer, MotoServer, MinistackServer])
def test_server_leaves_no_process_port_or_file(kind: type[S3Server], tls_files: TlsFiles) -> None:
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


def test_server_ends_when_its_starter_is_killed() -> None:
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


def test_killed_server_restarts_on_its_port_with_its_data() -> None:
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


def test_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    class Broken(RcloneServer):
        def command(self) -> list[str]:
            return [*super().command(), "--no-such-flag"]

    with pytest.raises(ServerError, match="unknown flag: --no-such-flag"):
        Broken(tmp_path).start()


def test_server_ignores_the_users_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLONE_READ_ONLY", "true")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with RcloneServer() as server:
        server.create_bucket("bucket")
        server.client().put_object(Bucket="bucket", Key="key", Body=BODY)


def test_rclone_refuses_wrong_credentials(rclone_server: RcloneServer) -> None:
    unknown = rclone_server.client(access_key="another-access-key")
    wrong = rclone_server.client(secret_key="another-secret-key")
    assert _code(unknown.list_buckets) == "InvalidAccessKeyId"
    assert _code(wrong.list_buckets) == "SignatureDoesNotMatch"


def test_moto_checks_credentials_only_on_request(moto_server: MotoServer, make_bucket: BucketFactory) -> None:
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
