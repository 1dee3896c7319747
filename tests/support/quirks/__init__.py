"""A small S3 server in memory that deviates from S3 in one named way at a time, a quirk.

It takes the place of servers that the tests cannot run. ``python -m tests.support.quirks --quirk
start-after-ignored`` is correct in everything except that one behaviour. Without a quirk the server behaves like
AWS, as far as the pipeline uses S3.

=================  ==========================================================================================
``memory``         buckets, objects and multipart uploads
``http_server``    HTTP/1.1 with keep-alive and TLS, a thread for each connection; also as a proxy
``service``        the operations of S3, without quirks
``signatures``     checks Signature Version 4, for the quirks that need it
``catalog``        the quirks: each is a class that overrides one behaviour
``admin``          ``/-/``: selects the quirk, reads and changes objects directly, returns the request log
``process``        :class:`QuirkServer`, which starts the process and uses ``/-/``
``memory_check``   checks an hour against the objects in memory
=================  ==========================================================================================
"""
