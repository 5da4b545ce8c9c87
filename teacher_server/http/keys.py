"""API keys. A file holds one name and SHA-256 per line, never a key."""

import base64
import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from distill.errors import ConfigError

LINE = re.compile(r"([A-Za-z0-9_.-]{1,64})\s+sha256:([0-9a-f]{64})")
PREFIX = "distill_"


@dataclass
class ApiKeys:
    """Digests by the name of their owner. path: the file they are from."""

    digests: dict[str, bytes]
    path: Path

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """From a file that `new_key` writes; empty lines and lines after # are passed over.

        Raises:
            ConfigError: the file is not there, holds no key or something else.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}), expected API keys") from error
        digests: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = LINE.fullmatch(line.strip())
            if not match or match[1] in digests:
                raise ConfigError(
                    f"{path}: line {number}: expected a new name and sha256:… as "
                    "`distill api-key NAME` writes them"
                )
            digests[match[1]] = bytes.fromhex(match[2])
        if not digests:
            raise ConfigError(
                f"{path}: no key found; make one with `distill api-key NAME --file FILE`"
            )
        return cls(digests, path)

    def owner(self, authorization: str, *, passwords: bool = False) -> str | None:
        """Whose key an Authorization header bears. Takes as long for a wrong key as for any.

        Bearer KEY; passwords: or Basic with the key as password and any user name, as browsers do.
        """
        kind, _, key = authorization.partition(" ")
        if passwords and kind.lower() == "basic":
            kind, key = "bearer", _password(key)
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        owner = None
        for name, key_digest in self.digests.items():
            if hmac.compare_digest(key_digest, digest):
                owner = name
        return owner if kind.lower() == "bearer" else None


def _password(credentials: str) -> str:
    """What stands behind the first colon; empty where there is none."""
    try:
        decoded = base64.b64decode(credentials.strip(), validate=True)
    except ValueError:
        return ""
    return decoded.decode("utf-8", "surrogateescape").partition(":")[2]


def new_key(name: str, path: Path) -> str:
    """Make a key, append its digest to the file, and give the key: nobody can read it off again.

    Raises:
        ConfigError: the name is taken, or no name of a key.
    """
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}), expected API keys") from error
    if before.strip() and name in ApiKeys.read(path).digests:
        raise ConfigError(f"{path}: {name!r} has a key, expected a new name; or remove its line")
    key = PREFIX + secrets.token_urlsafe(32)
    line = f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}\n"
    if not LINE.fullmatch(line.strip()):
        raise ConfigError(f"name {name!r} found, expected 1 to 64 letters, digits, - _ or .")
    try:
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(number, "w", encoding="utf-8") as file:
            file.write(line if not before or before.endswith("\n") else "\n" + line)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
    return key
