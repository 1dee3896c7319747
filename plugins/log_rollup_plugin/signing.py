"""Signature Version 4 for the data plane, whose bodies are not signed because a CRC of theirs is."""

from awscrt import auth, http
from botocore.credentials import Credentials, ReadOnlyCredentials


class Signer:
    """Signs heads of requests; the CRT's way, for keys that have steps such as ``..`` too.

    :param credentials: botocore's, which renew themselves when they are about to expire
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._frozen: ReadOnlyCredentials | None = None
        self._configs: dict[str, auth.AwsSigningConfig] = {}

    def sign(
        self, region: str, host: str, method: str, target: str, headers: list[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """All headers of a request, its signature among them.

        :param target: the path, percent-encoded
        :raises botocore.exceptions.BotoCoreError: if there are no credentials any more
        """
        frozen = self._credentials.get_frozen_credentials()
        if frozen != self._frozen:
            self._frozen = frozen
            self._configs.clear()
        config = self._configs.get(region)
        if config is None:
            config = self._configs[region] = _config(region, frozen)
        request = http.HttpRequest(method, target, http.HttpHeaders([("host", host), *headers]))
        auth.aws_sign_request(request, config).result()
        return list(request.headers)


def _config(region: str, credentials: ReadOnlyCredentials) -> auth.AwsSigningConfig:
    return auth.AwsSigningConfig(
        credentials_provider=auth.AwsCredentialsProvider.new_static(
            credentials.access_key, credentials.secret_key, credentials.token
        ),
        region=region,
        service="s3",
        use_double_uri_encode=False,
        should_normalize_uri_path=False,
        signed_body_value=auth.AwsSignedBodyValue.UNSIGNED_PAYLOAD,
        signed_body_header_type=auth.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256,
    )
