"""A small S3 server in memory that can misbehave in one named way at a time.

It replaces the servers that are not available: ``python -m tests.support.quirks --quirk start-after-ignored``
is correct in everything except that one behaviour. Without a quirk it behaves as AWS does, as far as the pipeline
uses S3.

=================  ==========================================================================================
``memory``         buckets, objects and multipart uploads
``http_server``    HTTP/1.1 with keep-alive, a thread for each connection, TLS, and the part of a proxy
``service``        S3's operations, done right
``signatures``     Signature Version 4, for the quirks that check it
``catalog``        the quirks: each a class that overrides one behaviour
``admin``          ``/-/``: choose the quirk, read and change objects directly, read the request log
``process``        :class:`QuirkServer`, which starts it and speaks to ``/-/``
=================  ==========================================================================================
"""
