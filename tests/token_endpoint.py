"""An identity provider's token endpoint, over TLS, as far as the client credentials flow goes."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from tests.certificates import Authority


def unsigned_token(subject: str, life_s: float) -> str:
    """A JWT that Kafka's validator for unsecured tokens takes."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now, "exp": now + life_s})
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, ""])


class TokenEndpoint:
    """Gives tokens to ``client`` with ``secret``; remembers the forms it was sent."""

    def __init__(self, folder: Path, authority: Authority, *, client: str, secret: str, life_s: float = 60) -> None:
        self.client, self.secret, self.life_s = client, secret, life_s
        self.forms: list[dict[str, str]] = []
        self.status = 200
        self.answer: dict[str, object] | None = None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                endpoint.forms.append(dict(urllib.parse.parse_qsl(form)))
                status, body = endpoint.reply(self.headers.get("Authorization", ""))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("idp", "127.0.0.1").write(folder, "idp"))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def reply(self, authorization: str) -> tuple[int, dict[str, object]]:
        """Status and body for a request with this header."""
        pair = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        if pair != f"{urllib.parse.quote_plus(self.client)}:{urllib.parse.quote_plus(self.secret)}":
            return 401, {"error": "invalid_client", "error_description": f"{pair} is unknown"}
        if self.status != 200:
            return self.status, {"error": "temporarily_unavailable"}
        if self.answer is not None:
            return 200, self.answer
        return 200, {"access_token": unsigned_token(self.client, self.life_s), "expires_in": self.life_s}

    def __enter__(self) -> TokenEndpoint:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
