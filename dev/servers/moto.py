"""moto as an S3 server."""

import json
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dev.s3_client import isolated_session
from dev.servers.base import S3Server, ServerError


class MotoServer(S3Server):
    """``moto_server``: strict and complete, slow, everything in memory."""

    # Importing moto takes seconds on a busy machine.
    start_seconds = 60.0

    def command(self) -> list[str]:
        """See :meth:`S3Server.command`."""
        return [
            str(Path(sys.executable).with_name("moto_server")),
            "--host=127.0.0.1",
            f"--port={self.port}",
            *([f"--ssl-cert={self.tls.certificate}", f"--ssl-key={self.tls.key}"] if self.tls else []),
        ]

    @contextmanager
    def enforced_authentication(self, *actions: str) -> Iterator[tuple[str, str]]:
        """Check signatures and permissions within the block; outside it, moto accepts any credentials.

        :param actions: allowed actions of the new user, such as ``s3:GetObject``; all of S3 by default
        :returns: access key and secret key of that user, the only user of the server
        """
        allowed = {"Effect": "Allow", "Action": list(actions) or ["s3:*"], "Resource": "*"}
        with self.enforced_policy({"Version": "2012-10-17", "Statement": [allowed]}) as keys:
            yield keys

    @contextmanager
    def enforced_policy(self, policy: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Do the same with a complete IAM policy."""
        iam = isolated_session().client(
            "iam",
            region_name=self.region,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            verify=str(self.tls.ca) if self.tls else None,
        )
        user = f"user-{uuid.uuid4().hex[:12]}"
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="test", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=user)["AccessKey"]
        # The body is the number of further requests that moto accepts without a check.
        self._post("/moto-api/reset-auth", "0")
        try:
            yield key["AccessKeyId"], key["SecretAccessKey"]
        finally:
            self._post("/moto-api/reset-auth", "inf")

    def _post(self, path: str, body: str = "") -> None:
        connection = self._http(timeout_seconds=30)
        try:
            connection.request("POST", path, body=body)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"moto answered {response.status} to POST {path}: {text}")
