"""From flags to a client: endpoints, TLS, user and password, with etcdctl's refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recipes.ctl.exits import EXIT_BAD_CONNECTION, EXIT_ERROR, CommandError, bad_args
from recipes.ctl.flags import FlagSet
from recipes.ctl.transport import Client, Credentials

if TYPE_CHECKING:
    import ssl

    from recipes.ctl.invocation import Invocation


def make_client(invocation: Invocation, endpoints: list[str] | None = None) -> Client:
    """Make the client; nothing is connected yet.

    Args:
        invocation: Where the flags are.
        endpoints: Others than ``--endpoints``.

    Raises:
        CommandError: a setting makes no sense.
    """
    flags = invocation.flags
    if flags.text("discovery-srv"):
        raise CommandError(EXIT_ERROR, "discovery by DNS is not supported: name the servers with --endpoints")
    if endpoints is None:
        endpoints = flags.texts("endpoints")
    tls = _tls(flags)
    credentials = _credentials(invocation)
    if not endpoints:
        raise CommandError(EXIT_BAD_CONNECTION, "etcdclient: no available endpoints")
    return Client(
        endpoints,
        tls=tls,
        credentials=credentials,
        dial_timeout=flags.seconds("dial-timeout"),
        keepalive_seconds=flags.seconds("keepalive-time"),
        keepalive_timeout_seconds=flags.seconds("keepalive-timeout"),
        warn=invocation.complain,
    )


def _tls(flags: FlagSet) -> ssl.SSLContext | None:
    for name in ("cert", "key", "cacert"):
        if not flags.text(name) and name in flags.given:
            raise bad_args(f"empty string is passed to --{name} option")
    cert, key, cacert = flags.text("cert"), flags.text("key"), flags.text("cacert")
    if not (cert or key or cacert) and flags.on("insecure-transport"):
        return None
    import ssl

    if bool(cert) != bool(key):
        raise bad_args(f"KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")
    context = ssl.create_default_context()
    try:
        if cacert:
            with open(cacert, encoding="ascii", errors="replace") as file:
                authorities = file.read()
            context = ssl.create_default_context(cadata=authorities)
        if cert:
            for path in (cert, key):
                with open(path, "rb"):
                    pass
            context.load_cert_chain(cert, key)
    except ssl.SSLError:
        raise bad_args("tls: failed to find any PEM data in certificate input") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise bad_args(f"open {error.filename}: {reason}") from None
    if flags.on("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _credentials(invocation: Invocation) -> Credentials | None:
    user, password = invocation.flags.text("user"), invocation.flags.text("password")
    if not user:
        return None
    if password:
        return Credentials(user, password)
    name, colon, password = user.partition(":")
    if not colon:
        from recipes.ctl.passwords import ask

        password = ask(invocation, "Password: ")
    return Credentials(name, password)
