"""rclone as an S3 server."""

import shutil
import sys
from pathlib import Path

from dev.servers.base import S3Server
from dev.tls import TlsFiles


class RcloneServer(S3Server):
    """``rclone serve s3``: fast; objects are plain files below ``data_dir/BUCKET/``."""

    def __init__(self, state_dir: Path | None = None, tls: TlsFiles | None = None) -> None:
        super().__init__(state_dir, tls)
        self.data_dir = self.state_dir / "data"
        self.data_dir.mkdir(exist_ok=True)

    def command(self) -> list[str]:
        """See :meth:`S3Server.command`."""
        return [
            str(Path(sys.executable).with_name("rclone")),
            "serve",
            "s3",
            str(self.data_dir),
            # An empty name: rclone then reads no configuration file of the user.
            "--config=",
            f"--cache-dir={self.state_dir / 'cache'}",
            f"--addr=127.0.0.1:{self.port}",
            f"--auth-key={self.access_key},{self.secret_key}",
            "--vfs-cache-mode=off",
            *([f"--cert={self.tls.certificate}", f"--key={self.tls.key}"] if self.tls else []),
        ]

    def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket with all its objects, as files; the server may list its name a little longer."""
        shutil.rmtree(self.data_dir / bucket)
