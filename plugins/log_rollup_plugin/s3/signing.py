"""Signature Version 4 for the data plane. Bodies are not signed, but their CRC or MD5 is, as a header."""

import time
from datetime import UTC, datetime

from awscrt import auth, http
from botocore.credentials import Credentials, ReadOnlyCredentials


class Signer:
    """Signs requests with the present time.

    Uses the CRT: it is fast, and it does not normalise keys such as ``a/../b``.

    :param credentials: botocore's, which renew themselves before they expire
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._frozen: ReadOnlyCredentials | None = None
        self._second = 0
        self._configs: dict[tuple[str, bool], auth.AwsSigningConfig] = {}

    def sign(
        self,
        region: str,
        host: str,
        method: str,
        target: str,
        headers: list[tuple[str, str]],
        has_body: bool = False,
    ) -> list[tuple[str, str]]:
        """All headers of a request: Host, the given ones, and those of the signature.

        :param target: path and query, percent-encoded
        :param has_body: if False, the signature covers that the body is empty
        :raises botocore.exceptions.BotoCoreError: if the credentials cannot be renewed
        """
        frozen = self._credentials.get_frozen_credentials()
        # A signing configuration contains the time, and signatures have a resolution of one second.
        second = int(time.time())
        if frozen != self._frozen or second != self._second:
            self._frozen, self._second = frozen, second
            self._configs.clear()
        config = self._configs.get((region, has_body))
        if config is None:
            config = self._configs[region, has_body] = _config(region, has_body, frozen, second)
        request = http.HttpRequest(method, target, http.HttpHeaders([("host", host), *headers]))
        auth.aws_sign_request(request, config).result()
        return list(request.headers)


def _config(
    region: str, has_body: bool, credentials: ReadOnlyCredentials, second: int
) -> auth.AwsSigningConfig:
    signed = auth.AwsSignedBodyValue
    return auth.AwsSigningConfig(
        credentials_provider=auth.AwsCredentialsProvider.new_static(
            credentials.access_key, credentials.secret_key, credentials.token
        ),
        region=region,
        service="s3",
        date=datetime.fromtimestamp(second, UTC),
        use_double_uri_encode=False,
        should_normalize_uri_path=False,
        signed_body_value=signed.UNSIGNED_PAYLOAD if has_body else signed.EMPTY_SHA256,
        signed_body_header_type=auth.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
    )
