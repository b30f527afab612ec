"""A Redis client in a page: enough of RESP2 for the neighbours, with nothing but the standard library."""

import socket
from urllib.parse import parse_qs, unquote, urlsplit


class RedisError(Exception):
    """Redis answered with an error."""


class Client:
    """One database. Connects when first asked, and again after a lost connection."""

    def __init__(self, url, db):
        self.url, self.db = urlsplit(url), db
        self.socket = self.file = None

    def connect(self):
        url = self.url
        # the database number in the URL is replaced by the one each use needs (PROTOCOL.md 2)
        query = parse_qs(url.query)
        password = url.password or query.get("password", query.get("pass", [None]))[0]
        if url.scheme in ("unix", "redis+unix"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(10)
            self.socket.connect(unquote(url.path))
        else:
            self.socket = socket.create_connection((url.hostname, url.port or 6379), timeout=10)
        self.file = self.socket.makefile("rb")
        if password:
            user = [unquote(url.username)] if url.username else []
            self.exchange("AUTH", *user, unquote(password))
        self.exchange("SELECT", self.db)

    def close(self):
        for part in (self.file, self.socket):
            if part:
                part.close()
        self.socket = self.file = None

    def __call__(self, *command):
        """Runs one command; a connection that broke since the last one is made anew, once."""
        fresh = self.socket is None
        try:
            if fresh:
                self.connect()
            return self.exchange(*command)
        except (OSError, EOFError):
            self.close()
            if fresh:
                raise
        self.connect()
        return self.exchange(*command)

    def exchange(self, *command):
        parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)
        self.socket.sendall(request)
        return self.reply()

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        length = int(rest)
        if length < 0:
            return None
        if kind == b"$":
            return self.file.read(length + 2)[:-2].decode()
        return [self.reply() for _ in range(length)]
