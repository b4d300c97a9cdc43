"""TLS: whose certificates a device believes, and what is said of one that does not verify."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from device_runtime.errors import InputError, NetworkError, PocketfedError, UntrustedError

_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID
_NAME_MISMATCHES = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED


def tls_context(authorities: Path | None = None) -> ssl.SSLContext:
    """A context that verifies the server's certificate and name, by the system's authorities or by those of a file.

    Raises:
        InputError: the file can't be read, or holds no certificate.
    """
    if authorities is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=str(authorities))
    except ssl.SSLError:
        raise InputError(
            f"{authorities}: holds no certificate; --ca-file names the authorities' certificates in PEM form"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{authorities}: can't read the authorities' certificates: {reason}") from None


def certificate_error(url: str, error: ssl.SSLCertVerificationError) -> PocketfedError:
    """What a certificate that does not verify is told as; one that a clock may make good is a `NetworkError`."""
    reason = f"{url}: the server's certificate does not verify: {error.verify_message.rstrip('.')}"
    if error.verify_code == _NOT_YET_VALID:  # a board without a clock starts in 1970
        return NetworkError(f"{reason}; set this device's clock")
    if error.verify_code == _EXPIRED:
        return UntrustedError(f"{reason}; have it renewed, or set this device's clock")
    if error.verify_code in _NAME_MISMATCHES:
        return UntrustedError(f"{reason}; name the server in --server as its certificate does")
    return UntrustedError(f"{reason}; name the authority that issued it with --ca-file, if it is a private one")


def no_tls(error: Exception) -> str | None:
    """What is said where a server answers a TLS handshake in the clear; None of any other error."""
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "no TLS is spoken there: is the port right, or is it an http:// server?"
    return None


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host stays on this device."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
