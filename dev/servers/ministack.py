"""MiniStack as an S3 server."""

import sys

from dev.servers.base import S3Server
from dev.stack.s3_servers import MINISTACK_PROGRAM


class MinistackServer(S3Server):
    """``ministack``: follows S3 in checksums and conditions, fast, everything in memory."""

    def command(self) -> list[str]:
        """See :meth:`S3Server.command`."""
        return [sys.executable, "-I", str(MINISTACK_PROGRAM)]

    def environment(self) -> dict[str, str]:
        """See :meth:`S3Server.environment`; MiniStack takes all its settings from environment variables."""
        settings = {
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_REGION": self.region,
            # Only S3. Services with their own port must be disabled by name.
            "SERVICES": "s3",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            # The key for the signatures of presigned URLs, the only ones that MiniStack checks.
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # MiniStack removes containers with its label when it starts and ends: hide Docker from it.
            "DOCKER_HOST": f"unix://{self.state_dir / 'no-docker.sock'}",
        }
        if self.tls:
            settings |= {
                "USE_SSL": "1",
                "MINISTACK_SSL_CERT": str(self.tls.certificate),
                "MINISTACK_SSL_KEY": str(self.tls.key),
            }
        return super().environment() | settings
