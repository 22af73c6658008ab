"""Certificates for servers on this machine."""

import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["Certificate", "self_signed"]


class Certificate(NamedTuple):
    """The paths of a certificate, of its key, and of a file with both, in the format PEM."""

    chain: Path
    key: Path
    both: Path


def self_signed(folder: Path) -> Certificate:
    """Create a certificate for ``localhost`` in a folder."""
    certificate = Certificate(folder / "certificate.pem", folder / "key.pem", folder / "both.pem")
    request = "openssl req -x509 -days 2 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    names = "-subj /CN=localhost -addext subjectAltName=DNS:localhost"
    command = [*request.split(), *names.split(), "-out", str(certificate.chain), "-keyout", str(certificate.key)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own arguments
    certificate.both.write_text(certificate.chain.read_text() + certificate.key.read_text())
    return certificate
