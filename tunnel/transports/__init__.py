"""Byte streams below HTTP: TCP, TLS, WebSocket."""
