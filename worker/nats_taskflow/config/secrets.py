"""Values that must not be printed: secrets, and URLs with a password.

A secret stands in the configuration itself, or better as `file:/path`, `env:NAME` or `credential:NAME` (a file in
`$CREDENTIALS_DIRECTORY`, which systemd's `LoadCredential=` provides).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from nats_taskflow.config.paths import check_file, check_private, reason
from nats_taskflow.errors import ConfigError
from nats_taskflow.secret_paths import check_path

_USERINFO = re.compile(r"//(.*)@")


class Url(str):
    """A server address.

    `repr` and `shown` mask its password; `str` is the whole address.
    """

    __slots__ = ()

    @property
    def shown(self) -> str:
        """The address with `***` for its password or token."""
        return _USERINFO.sub(lambda match: f"//{match[1].split(':', 1)[0]}:***@" if ":" in match[1] else "//***@", self)

    def __repr__(self) -> str:
        return repr(self.shown)


class Secret(msgspec.Struct, frozen=True):
    """A secret text, or the `path` of the file that holds it.

    Neither `repr` nor `str` shows the text.
    """

    text: str = ""
    path: str = ""
    source: str = ""

    def reveal(self) -> str:
        """Return the text. A file is read each time, so that a rotated secret is noticed.

        Raises `ConfigError` when it cannot be read.
        """
        if not self.path:
            return self.text
        try:
            return Path(self.path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as failure:
            raise ConfigError(
                f"the secret file {self.path} cannot be read ({reason(failure)}); check its path and permissions"
            ) from failure

    def __repr__(self) -> str:
        return f"Secret({self.source or '***'})"

    def __str__(self) -> str:
        return self.source or "***"


def is_written_out(value: object) -> bool:
    """Return whether a value contains a secret itself, not only its place.

    A plain password, an address with one in it.
    """
    if isinstance(value, Secret):
        return bool(value.text) and not value.source
    return isinstance(value, tuple) and any(isinstance(url, Url) and url.shown != url for url in value)


def read_secret(text: str, environ: Mapping[str, str], *, plain_is_path: bool) -> Secret:
    """Return the secret that `text` names.

    Raises `ValueError` when it is missing, or open to others.

    `plain_is_path`: the client reads the secret from a file (credentials, NKey seeds, TLS keys). A text without a scheme is then the path,
    and `env:NAME` a variable with the path.
    """
    scheme, _, rest = text.partition(":")
    if scheme in ("env", "credential"):
        check_path(rest)
    if scheme == "env":
        if not environ.get(rest):
            raise ValueError(f"the environment variable {rest or '(no name)'} is not set; set it, or name another source")
        if plain_is_path:
            return Secret(path=check_private(environ[rest]), source=text)
        return Secret(text=environ[rest], source=text)
    if scheme == "credential":
        return Secret(path=_credential(rest, environ), source=text)
    if scheme == "file":
        return Secret(path=check_private(rest), source=text)
    if plain_is_path:
        return Secret(path=check_private(text), source=f"file:{text}")
    return Secret(text=text)


def _credential(name: str, environ: Mapping[str, str]) -> str:
    """Return the path of a systemd credential.

    Its mode is not checked: the service manager guards the folder.
    """
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ValueError(
            "$CREDENTIALS_DIRECTORY is not set; credential:NAME works in a systemd unit with LoadCredential=, else use file:/path"
        )
    if not name or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r} is no credential name; it is one file name in $CREDENTIALS_DIRECTORY")
    return check_file(str(Path(folder) / name))
