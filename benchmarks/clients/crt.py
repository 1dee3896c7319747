"""The minimum work of a client on the AWS CRT: GET all objects and discard them, or also PUT as many bytes.

Run as ``python -m benchmarks.clients.crt JOB``. No body reaches Python: the CRT writes received bodies to
/dev/null and reads sent bodies from one file in memory. Nothing is checked or joined.
"""

import math
import os
from queue import SimpleQueue
from typing import Any
from urllib.parse import quote, urlsplit

from awscrt import auth, http, io, s3

from benchmarks.clients.floor import listing, memory_file
from benchmarks.clients.job import Clock, Job

# The CRT opens about 2.5 connections for each Gbit/s of its target.
CONNECTIONS_PER_GBPS = 2.5
NO_MULTIPART_BYTES = 5 * 1024**3


def main() -> None:
    """GET all objects; with the option ``put``, PUT the same number of bytes meanwhile."""
    job = Job.from_arguments()
    listed = list(listing(job))
    client = CrtClient(job)
    with Clock() as clock:
        parts = client.run(listed)
    job.finish(clock, parts=parts)


class CrtClient:
    """A CRT client, and the queue in which its requests report their end."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._host = urlsplit(job.endpoint).netloc
        self._done: SimpleQueue[Exception | None] = SimpleQueue()
        loops = io.EventLoopGroup(1)
        provider = auth.AwsCredentialsProvider.new_static(job.access_key, job.secret_key)
        self._client = s3.S3Client(
            bootstrap=io.ClientBootstrap(loops, io.DefaultHostResolver(loops)),
            region=job.region,
            tls_mode=s3.S3RequestTlsMode.ENABLED if job.ca else s3.S3RequestTlsMode.DISABLED,
            tls_connection_options=self._tls() if job.ca else None,
            signing_config=s3.create_default_s3_signing_config(
                region=job.region, credential_provider=provider
            ),
            part_size=8 * 1024**2,
            multipart_upload_threshold=NO_MULTIPART_BYTES,
            throughput_target_gbps=float(math.ceil(job.connections / CONNECTIONS_PER_GBPS)),
            max_active_connections_override=job.connections,
            retry_config=s3.S3RetryConfig(max_retries=1),
        )

    def _tls(self) -> Any:
        options = io.TlsContextOptions()
        options.override_default_trust_store_from_path(ca_filepath=self._job.ca)
        return io.ClientTlsContext(options).new_connection_options()

    def run(self, listed: list[tuple[str, int]]) -> int:
        """Transfer all bytes, and return the number of parts.

        :raises Exception: the error of the first failed request
        """
        part_bytes = self._job.part_bytes
        puts = self._job.options.get("put", False)
        # Every part has the same bytes, so that they cost nothing to provide.
        part = memory_file(part_bytes)
        waiting = got = parts = 0
        # Keep references: a request that is garbage-collected is cancelled.
        requests = []
        for key, size in listed:
            requests.append(self._get(key))
            waiting, got = waiting + 1, got + size
            if puts and got >= part_bytes * (parts + 1):
                requests.append(self._put(parts, part_bytes, part))
                waiting, parts = waiting + 1, parts + 1
            while waiting > 2 * self._job.connections:
                self._wait()
                waiting -= 1
        rest = got - part_bytes * parts
        last = memory_file(rest)
        if puts and rest:
            requests.append(self._put(parts, rest, last))
            waiting, parts = waiting + 1, parts + 1
        for _ in range(waiting):
            self._wait()
        os.close(part)
        os.close(last)
        return parts

    def _wait(self) -> None:
        error = self._done.get()
        if error is not None:
            raise error

    def _get(self, key: str) -> s3.S3Request:
        headers = http.HttpHeaders([("host", self._host)])
        return self._client.make_request(
            type=s3.S3RequestType.DEFAULT,
            operation_name="GetObject",
            request=http.HttpRequest("GET", self._path(key), headers),
            recv_filepath=os.devnull,
            on_done=self._on_done,
        )

    def _put(self, number: int, size: int, body: int) -> s3.S3Request:
        headers = [("host", self._host), ("content-length", str(size))]
        key = f"{self._job.out_prefix}part-{number:05d}.log"
        return self._client.make_request(
            type=s3.S3RequestType.PUT_OBJECT,
            request=http.HttpRequest("PUT", self._path(key), http.HttpHeaders(headers)),
            # A new file description, so that every request reads from the start.
            send_filepath=f"/proc/self/fd/{body}",
            fio_options=s3.S3FileIoOptions(should_stream=True),
            on_done=self._on_done,
        )

    def _on_done(self, error: Exception | None = None, **_: Any) -> None:
        self._done.put(error)

    def _path(self, key: str) -> str:
        return "/" + quote(f"{self._job.bucket}/{key}", safe="/~")


if __name__ == "__main__":
    main()
