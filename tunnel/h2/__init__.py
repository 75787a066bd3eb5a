"""HTTP/2 (RFC 9113) without I/O: bytes in, events out; calls in, bytes out. One engine for both roles."""
