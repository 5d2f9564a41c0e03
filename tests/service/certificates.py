"""An authority of one's own, and certificates that it signs, as people make them with openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HAS_OPENSSL = shutil.which("openssl") is not None


@dataclass(frozen=True)
class Certificates:
    """Files in PEM."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        """What a server is told."""
        return ("--tls-cert", str(self.certificate), "--tls-key", str(self.key))


def certificates(folder: Path, names: str = "DNS:localhost") -> Certificates:
    """Makes an authority, and a certificate for some names that it signs."""
    folder.mkdir(parents=True, exist_ok=True)
    request = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(
        *(folder, *request, "-x509", "-days", "1", "-subj", "/CN=our authority"),
        *("-keyout", "ca.key", "-out", "ca.pem"),
    )
    _openssl(
        *(folder, *request, "-x509", "-days", "1", "-subj", "/CN=a server"),
        *("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", f"subjectAltName={names}"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", "key.pem", "-out", "cert.pem"),
    )
    (folder / "key.pem").chmod(0o600)
    return Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
