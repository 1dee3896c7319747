"""S3 servers as processes, for tests and benchmarks, and how each of them differs from S3.

Observed with rclone 1.75.2, moto 5.2.5 and MiniStack 1.4.21. Where none of them behaves like S3, tests add that
behaviour with rules of :mod:`tests.support.faults`.

====================================  ================================  ====================================
request                               rclone                            moto
====================================  ================================  ====================================
wrong access key, wrong secret        403 InvalidAccessKeyId,           accepted; within
                                      SignatureDoesNotMatch             ``enforced_authentication`` the same
                                                                        403s, and the user's policy
PUT with x-amz-checksum-crc64nvme     stored as sent, right or wrong;   the same, if the request also has
                                      every HEAD and GET returns it,    x-amz-sdk-checksum-algorithm;
                                      requested or not                  returned if requested, but not for
                                                                        a Range
PUT with a wrong Content-MD5          400 BadDigest                     accepted
PUT whose body is not the signed one  accepted                          accepted
If-Match, If-None-Match               ignored                           honoured: 412
x-amz-copy-source-if-match            ignored                           ignored (if-none-match is honoured)
If-Match of DeleteObject              ignored                           honoured: 412
CopyObject                            keeps metadata and CRC; REPLACE   keeps both; REPLACE replaces;
                                      merges old and new metadata       computes a CRC if requested
UploadPartCopy                        stores an empty part              copies
multipart upload, its ETag            MD5 of the object in HEAD, LIST   ``...-N``
user metadata                         returns names as ``Like-This``    returns names as sent
restart                               keeps bodies, loses metadata,     loses everything
                                      CRCs and storage classes
LIST                                  ETags without quotes; no          as S3
                                      KeyCount if it is 0
keys with ``//``, ``/./``, ``/../``   400 InvalidArgument               as S3
an object ``a`` and one ``a/b``       500 InternalError for the second  as S3
a key segment of over 255 bytes       500 InternalError                 as S3
control characters                    listed as other characters        as S3, newline 404
placeholder ``a/``                    becomes the object ``a``          as S3
concurrent uploads to a new folder    sometimes a 500                   as S3
connections                           kept alive                        closed after every response
====================================  ================================  ====================================

On both, as on S3: spaces, ``+``, ``%``, ``&``, quotes and any Unicode in keys; the order of a LIST; StartAfter,
Delimiter, MaxKeys, encoding-type=url; empty objects; Range; DeleteObjects; ListMultipartUploads; a Date in every
response; 100-continue; presigned URLs.

MiniStack behaves like S3 in each of these rows, except:

- It checks neither access keys, signatures nor the SHA-256 of a body. It checks presigned URLs.
- It compares a CRC64-NVME with the body only if the request also has x-amz-sdk-checksum-algorithm; otherwise it
  stores the CRC as sent. It refuses a wrong one with 400 BadDigest, and any CRC32C with 400 InvalidRequest.
- CopyObject keeps the CRC of the source, but computes none if the request asks for one.
- UploadPartCopy ignores x-amz-copy-source-if-match. CopyObject honours it.
- The CRC of a multipart upload is composite, even if the request asks for FULL_OBJECT.
- DeleteObject with If-Match returns 204 if the object does not exist.
- Everything is in memory and lost at a restart.

Use rclone for volume, speed, signatures and restarts; moto for unusual keys, placeholders and policies;
MiniStack for checksums and conditions as on AWS.
"""

from dev.s3_client import S3Client, plain_client
from dev.servers.base import SESSION_VARIABLE, S3Server, ServerError, free_port
from dev.servers.ministack import MinistackServer
from dev.servers.moto import MotoServer
from dev.servers.rclone import RcloneServer

__all__ = [
    "SESSION_VARIABLE",
    "MinistackServer",
    "MotoServer",
    "RcloneServer",
    "S3Client",
    "S3Server",
    "ServerError",
    "free_port",
    "plain_client",
]
