# SPDX-License-Identifier: MIT
"""What obstore raised, as one of our errors and as a sentence.

It tells most of what went wrong in texts only: the status of an answer, the XML of its body, and
behind "Debug source" the causes of what has no answer. They are read here and nowhere else; what
is not recognised is told as it came, without that. Of a body only code and message are taken: the
rest may repeat what we sent.
"""

import re
from dataclasses import dataclass

from swiftnbd.errors import (
    AccessRefused,
    CorruptObject,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

_STATUS = re.compile(r"status(?: code)?:? (\d{3})\b ?([A-Za-z ]*)")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,500})</Message>")
_TEXT_CHARS_MAX = 300
# Where instances of the clouds find credentials: asked only by who has none.
_METADATA_HOST = "169.254.169.254"

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_BUSY = {"SlowDown", "TooManyRequests", "ServerBusy", "OperationAborted", "RequestLimitExceeded"}
_PASSING = {"RequestTimeout", "InternalError", "ServiceUnavailable", "ConditionalRequestConflict"}
_FULL = {"QuotaExceeded", "EntityTooLarge", "InsufficientStorage", "XMinioStorageFull"}
_CHANGED_ON_THE_WAY = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "Md5Mismatch"}
_HINTS = {
    "SignatureDoesNotMatch": "access key ID and secret access key do not fit",
    "InvalidAccessKeyId": "there is no such access key ID",
    "AccessDenied": "these credentials may not do that",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
    "AuthorizationHeaderMalformed": "the region is wrong",
    "PermanentRedirect": "the bucket is in another region, or behind another endpoint",
}
_CAUSES = (
    ("ConnectionRefused", "connection refused"),
    ("dns error", "its name cannot be looked up"),
    ("TimedOut", "no answer in time"),
    ("kind: Timeout", "no answer in time"),
    ("UnknownIssuer", "its certificate is of an authority that is not trusted"),
    ("InvalidCertificate", "its certificate is not valid"),
    ("No CA certificates", "this machine trusts no authority: install ca-certificates, or cacert"),
    ("InvalidContentType", "it does not speak TLS"),
    ("IncompleteBody", "the answer ended early"),
    ("ConnectionReset", "connection reset"),
    ("IncompleteMessage", "the connection ended without an answer"),
    ("MissingEtag", "the answer lacks an ETag"),  # such as Swift's 202: it had something newer
)


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of a request that failed: ``status`` None is no answer at all.

    ``is_of_network``: it did not come through, or its answer did not come back.
    """

    status: int | None
    code: str  # the service's own word for it, such as NoSuchBucket; or ''
    text: str  # for people
    is_of_network: bool = False

    @property
    def is_of_bucket(self) -> bool:
        """Whether the bucket is not there, and not just an object."""
        return self.code in _NO_BUCKET

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        whole = str(error)
        text, _, causes = whole.partition("\n\nDebug source")
        if _METADATA_HOST in text:
            return cls(403, "", "no credentials are given, and none are found on this machine")
        status, code = _STATUS.search(text), _CODE.search(text)
        message = _MESSAGE.search(text)
        name = "" if code is None else code[1]
        if status is None:
            told = next((cause for mark, cause in _CAUSES if mark in causes), "")
            is_of_network = "HttpError" in causes or "MissingEtag" in causes
            return cls(None, name, told or _plain(text), is_of_network)
        reason = f"{status[1]} {status[2].strip()}".strip()
        said = _HINTS.get(name) or ("" if message is None else _plain(message[1]))
        more = " ".join(filter(None, (said, f"({name})" if name else "")))
        return cls(int(status[1]), name, f"{reason}: {more}" if more else reason)


def store_error(what: str, failure: Failure) -> StoreError:
    """The error to raise for one of obstore's. ``what`` begins its sentence."""
    sentence = f"{what}: {failure.text}"
    status, code = failure.status, failure.code
    if status in (401, 403) or code in ("RequestTimeTooSkewed", "AuthorizationHeaderMalformed"):
        return AccessRefused(sentence)
    if code in _CHANGED_ON_THE_WAY:
        return CorruptObject(sentence)
    if code in _FULL or status in (413, 507):
        return StoreFull(sentence)
    if code in _BUSY or status in (409, 429):
        return StoreBusy(sentence)
    if code in _PASSING or status == 408 or ((status or 0) >= 500 and status != 501):
        return StoreUnavailable(sentence)
    if failure.is_of_network:
        return StoreUnavailable(sentence)
    return StoreError(sentence)


def _plain(text: str) -> str:
    """One line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_CHARS_MAX else f"{line[:_TEXT_CHARS_MAX]}..."
