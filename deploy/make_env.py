"""Writes .env for docker-compose.yaml: .env.example with new random keys.

    python3 deploy/make_env.py [TARGET]

It only needs Python. It never overwrites an existing file, because the database is encrypted with its keys.
"""

import base64
import os
import re
import secrets
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
_PLACEHOLDER = re.compile(r"<([A-Z0-9_]+)>")


def render(template: str) -> str:
    """Return the template with each `<NAME>` replaced by a random key; equal names get equal keys."""
    # Fernet keys have their own format. The others are hex, which is safe in URLs and in headers of S3 requests.
    keys = {"FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()}

    def key(match: re.Match[str]) -> str:
        return keys.setdefault(match[1], secrets.token_hex(20))

    lines = template.splitlines(keepends=True)
    return "".join(line if line.startswith("#") else _PLACEHOLDER.sub(key, line) for line in lines)


def main(target: Path) -> int:
    """Write the file with read permission for its owner only; return 1 if it exists already."""
    text = render((PROJECT / ".env.example").read_text())
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        sys.stderr.write(f"{target} exists already and was not changed\n")
        return 1
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / ".env"))
