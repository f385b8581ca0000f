"""Who may talk to the daemon: pure checks of a connection and of a request head.

They protect against web pages (DNS rebinding, cross-site requests), other users, and careless proxies; not against
other processes of the same user. Order: peer, Host, Origin, Sec-Fetch-Site, content type, token, then the route.
No answer carries CORS headers.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus

from semtask.api.access import OWNER, Access, Credentials
from semtask.api.messages import Head, Refused, bad_request, too_large
from semtask.api.routes import Route, RouteTable
from semtask.errors import InvalidRequest, Unauthorized

# No page can send one of these to another origin without asking first.
_CONTENT_TYPES = frozenset({b"application/json", b"application/json-rpc", b"application/jsonrequest"})
_OWN_SITES = frozenset({b"same-origin", b"none"})
_BEARER = ((b"www-authenticate", b"Bearer"),)
_CONFINED = (
    "You run in a sandbox (with no_new_privs), and nothing gets out of one by asking this daemon: give a token. "
    "Outside, `semtask token add NAME --scope SCOPE` makes one; put it into SEMANTICA_TOKEN, or into a file that "
    "SEMANTICA_TOKEN_FILE names. A job gets one of its own by `semtask run --access SCOPE`."
)
_LOOPBACK_NAMES = (b"localhost", b"127.0.0.1", b"[::1]")


@dataclass(frozen=True)
class Endpoint:
    """Where a connection arrives. `port` is None on the unix socket.

    `credentials` judge the tokens that are given, and are None where tokens mean nothing; who gives none is the owner,
    unless a token is `needed`.
    """

    port: int | None = None
    credentials: Credentials | None = field(default=None, repr=False)
    needed: bool = False


def check_peer(peer_uid: int, own_uid: int) -> None:
    """Only the daemon's own user may use the unix socket; root has no business of its own here either."""
    if peer_uid != own_uid:
        raise Refused(HTTPStatus.FORBIDDEN, Unauthorized("This daemon belongs to another user."))


def check_head(
    head: Head, endpoint: Endpoint, routes: RouteTable, max_body_bytes: int, *, confined: bool = False
) -> tuple[Route, Access]:
    """The route of a request, and what the client may do. Raises Refused unless the request may be read and executed.

    A `confined` process needs a token in any case: it may be a job that shall not get out of its sandbox.
    """
    _check_host(head.values(b"host"), endpoint.port)
    if head.authority is not None and (
        endpoint.port is None or head.authority.lower() not in _authorities(endpoint.port)
    ):
        raise _forbidden("This daemon is no proxy: only a URL of its own is allowed.")
    _check_origin(head, endpoint.port)
    if head.method == b"POST":
        _check_content(head)
    authorizations = head.values(b"authorization")
    if head.authority is not None:  # a client that takes the daemon for its proxy has its token there
        authorizations = authorizations or head.values(b"proxy-authorization")
    if confined and not authorizations:
        raise Refused(HTTPStatus.UNAUTHORIZED, Unauthorized(_CONFINED), _BEARER)
    access = _access(authorizations, endpoint)
    route = routes.find(head)
    _check_scope(route, access)
    _check_framing(head, max_body_bytes)
    return route, access


def _forbidden(reason: str) -> Refused:
    return Refused(HTTPStatus.FORBIDDEN, Unauthorized(reason))


def _check_host(hosts: Sequence[bytes], port: int | None) -> None:
    if port is None:  # a unix socket has no name that a page could be rebound to
        if len(hosts) > 1:
            raise bad_request("A request has exactly one Host header.")
        return
    if len(hosts) != 1:
        raise _forbidden("A request has exactly one Host header.")
    if hosts[0].lower() not in _authorities(port):
        raise _forbidden("This Host is not allowed: use localhost or 127.0.0.1 with the daemon's port.")


@cache
def _authorities(port: int) -> frozenset[bytes]:
    return frozenset(b"%s:%d" % (name, port) for name in _LOOPBACK_NAMES)


@cache
def _origins(port: int | None) -> frozenset[bytes]:
    """No page has a unix socket for its origin."""
    return frozenset() if port is None else frozenset(b"http://" + authority for authority in _authorities(port))


def _check_origin(head: Head, port: int | None) -> None:
    origins = head.values(b"origin")
    if len(origins) > 1 or not _origins(port).issuperset(origins):
        raise _forbidden("This Origin is not allowed.")
    if not _OWN_SITES.issuperset(head.values(b"sec-fetch-site")):
        raise _forbidden("Cross-site requests are not allowed.")


def _check_content(head: Head) -> None:
    types = [value.partition(b";")[0].strip().lower() for value in head.values(b"content-type")]
    if len(types) != 1 or types[0] not in _CONTENT_TYPES:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            InvalidRequest("The content type must be application/json or application/json-rpc, once."),
        )
    if head.values(b"content-encoding"):
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, InvalidRequest("The body must not be encoded."))


def _access(authorizations: Sequence[bytes], endpoint: Endpoint) -> Access:
    """A token that is given counts also where none is needed: who asks for less gets no more."""
    if endpoint.credentials is None or not (authorizations or endpoint.needed):
        return OWNER
    scheme, _, given = authorizations[0].partition(b" ") if len(authorizations) == 1 else (b"", b"", b"")
    token = _token(scheme.lower(), given.strip())
    access = None if token is None else endpoint.credentials.access(token)
    if access is None:
        raise Refused(HTTPStatus.UNAUTHORIZED, Unauthorized(), _BEARER)
    return access


def _token(scheme: bytes, given: bytes) -> bytes | None:
    """A bearer token, or the password of a client that knows names and passwords only; any name will do."""
    if scheme == b"bearer":
        return given
    if scheme != b"basic":
        return None
    try:
        return binascii.a2b_base64(given, strict_mode=True).partition(b":")[2]
    except binascii.Error:
        return None


def _check_scope(route: Route, access: Access) -> None:
    try:
        route.check(access)
    except Unauthorized as error:
        raise Refused(HTTPStatus.FORBIDDEN, error) from None


def _check_framing(head: Head, max_body_bytes: int) -> None:
    codings = head.values(b"transfer-encoding")
    lengths = head.values(b"content-length")
    if codings and (lengths or [coding.strip().lower() for coding in codings] != [b"chunked"]):
        raise bad_request("The only transfer coding is chunked, and it excludes a content length.")
    if any(not length.isdigit() for length in lengths) or len(lengths) > 1:
        raise bad_request("A request has at most one content length, a whole number.")
    if lengths and int(lengths[0][:20]) > max_body_bytes:
        raise too_large(max_body_bytes)
