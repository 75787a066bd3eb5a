"""The two HTTP/1.1 ends (RFC 9112): the server that callers reach, and the client towards an upstream."""
