"""``python -m tests.support.quirks``: serves until SIGTERM. It prints its port first."""

import argparse
import json
import signal
import ssl
import sys
from types import FrameType

from tests.support.quirks.admin import QuirkApplication
from tests.support.quirks.catalog import QUIRKS
from tests.support.quirks.http_server import HttpServer


def main() -> None:
    """Serve S3 with a quirk."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.quirks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            f"  {name:32} {(quirk.__doc__ or '').splitlines()[0]}" for name, quirk in QUIRKS.items()
        ),
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 for a free port")
    parser.add_argument("--quirk", default="no-quirk", choices=sorted(QUIRKS), metavar="NAME")
    parser.add_argument("--settings", type=json.loads, default={}, help="settings of the quirk, as JSON")
    parser.add_argument("--secret-key", default="secret", help="for quirks that check signatures")
    parser.add_argument("--cert", help="certificate for TLS (PEM)")
    parser.add_argument("--key", help="key of the certificate (PEM)")
    parser.add_argument("--tunnel-only", action="store_true", help="use TLS only in tunnels (CONNECT)")
    options = parser.parse_args()
    tls: ssl.SSLContext | None = None
    if options.cert:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options.cert, options.key)
    application = QuirkApplication(options.secret_key)
    application.choose(options.quirk, options.settings)
    secure = tls is not None and not options.tunnel_only
    with HttpServer((options.host, options.port), application, tls, secure) as server:
        application.server = server
        print(server.server_address[1], flush=True)

        def end(number: int, frame: FrameType | None) -> None:
            sys.exit(0)

        signal.signal(signal.SIGTERM, end)
        server.serve_forever(poll_interval=0.2)


if __name__ == "__main__":
    main()
