"""How a registry lets us in: the challenge of a 401, a token, and what is known of both."""

import base64
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final
from urllib.parse import urlencode, urlsplit

from infra.errors import SourceUnavailable, Unauthorized
from infra.json_file import parse_json_object, read_json_object
from infra.registry.connections import Connections

_MOST_TOKEN_BYTES: Final = 64 << 10
_PARAMETER: Final = re.compile(r'([a-z_]{1,32})="([^"]{0,2048})"', re.IGNORECASE)
_KEYS: Final = {"docker.io": "https://index.docker.io/v1/"}  # what `docker login` calls it
_LEAST_LIFE_S: Final = 60.0  # what the specification lets a client assume
_MOST_LIFE_S: Final = 3600.0


@dataclass(frozen=True)
class Login:
    """User and password (or token) of one registry."""

    user: str
    password: str

    @property
    def header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


Logins = Callable[[str], Login | None]


def no_login(host: str) -> Login | None:
    """Registries that everybody may read."""
    return None


def docker_logins(path: Path) -> Logins:
    """Logins of a `config.json` that `docker login` wrote; read again each time it is needed."""

    def login(host: str) -> Login | None:
        if not path.exists():
            return None
        auths = read_json_object(path, most_bytes=1 << 20).get("auths")
        known = auths.get(_KEYS.get(host, host)) if isinstance(auths, dict) else None
        text = known.get("auth") if isinstance(known, dict) else None
        if not isinstance(text, str):
            return None
        try:
            user, _, password = base64.b64decode(text, validate=True).decode().partition(":")
        except ValueError as error:
            raise Unauthorized(f"the login for {host} in {path.name} is damaged") from error
        return Login(user, password)

    return login


class Authorization:
    """Headers by registry and scope; a token is kept until shortly before it expires."""

    def __init__(
        self, connections: Connections, logins: Logins, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._connections = connections
        self._logins = logins
        self._now = now
        self._renewing = Lock()  # one thread at a time asks for a token
        self._lock = Lock()  # guards the table
        self._headers: dict[tuple[str, str], tuple[str, float]] = {}

    def header(self, host: str, scope: str) -> str | None:
        """What to send, if anything is known to be needed."""
        with self._lock:
            header, expires_at = self._headers.get((host, scope), (None, 0.0))
        return header if self._now() < expires_at else None

    def answer(self, host: str, scope: str, challenge: str, *, sent: str | None) -> str:
        """The header that a 401's challenge asks for, after `sent` was refused.

        Raises Unauthorized when nothing else can be sent, SourceUnavailable when the token
        service does not answer.
        """
        with self._renewing:
            known = self.header(host, scope)
            if known is not None and known != sent:
                return known  # another thread was faster
            header, life_s = self._renewed(host, scope, challenge)
            if header == sent:
                raise Unauthorized(f"{host} refuses our login for {scope}")
            with self._lock:
                self._headers[host, scope] = header, self._now() + life_s
        return header

    def _renewed(self, host: str, scope: str, challenge: str) -> tuple[str, float]:
        scheme, _, rest = challenge.partition(" ")
        login = self._logins(host)
        match scheme.lower():
            case "basic" if login is not None:
                return login.header, _MOST_LIFE_S
            case "bearer":
                parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
                return self._token(host, scope, parameters, login)
            case _:
                raise Unauthorized(f"{host} asks for a login", hint=f"log in: docker login {host}")

    def _are_plain(self, host: str, realm: str) -> bool:
        """Whether a login may go there without TLS: both hosts are ones that were named."""
        if not realm.startswith("http:"):
            return False
        hosts = host, urlsplit(realm).netloc
        return all(self._connections.origin(each).startswith("http:") for each in hosts)

    def _token(
        self, host: str, scope: str, challenge: dict[str, str], login: Login | None
    ) -> tuple[str, float]:
        realm = challenge.get("realm", "")
        if not (realm.startswith("https:") or self._are_plain(host, realm)):
            raise Unauthorized(f"{host} sends us to {realm[:100]!r} for a token")
        query = {"scope": scope}
        if "service" in challenge:
            query["service"] = challenge["service"]
        joint = "&" if "?" in realm else "?"
        answer = self._connections.ask(
            "GET",
            f"{realm}{joint}{urlencode(query)}",
            headers={"Authorization": login.header} if login else {},
            most_bytes=_MOST_TOKEN_BYTES,
        )
        if answer.status in {400, 401, 403, 404}:
            raise Unauthorized(f"{host} gives us no token for {scope}")
        if answer.status != 200:
            raise SourceUnavailable(f"the token service of {host} answers {answer.status}")
        granted = parse_json_object(answer.body, name="the token")
        token = granted.get("token") or granted.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise SourceUnavailable(f"the token service of {host} gives no token")
        life_s = granted.get("expires_in")
        if not isinstance(life_s, int | float) or life_s < _LEAST_LIFE_S:
            life_s = _LEAST_LIFE_S
        return f"Bearer {token}", min(float(life_s), _MOST_LIFE_S) * 0.9
