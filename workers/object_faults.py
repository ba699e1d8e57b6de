"""What an object store's error means to the person who reads it: one sentence, with what to do.

Comes in: an exception of the obstore package. Goes out: our own words, the store's error code, and the endpoint's host.
Never here: anything else of the exception's text, which may hold a signature or a whole answer.
"""

from __future__ import annotations

import re

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), run under a role, or set "
    "AWS_SKIP_SIGNATURE=true for a public bucket; profiles of ~/.aws are not read (aws configure export-credentials "
    "--format env prints one as variables)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, run gcloud auth application-default login, or set "
    "GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or run under a "
    "managed identity",
}
_CREDENTIALS["abfss"] = _CREDENTIALS["az"]

# Where credentials come from on a machine with a role, and what is said of those that cannot be read.
_NO_CREDENTIALS = (
    r"//169\.254\.|//metadata\.|//sts[.-]|/latest/(api|meta-data)/|token request|[Ss]ervice account|CryptoProvider"
    r"|Account must be specified"
)
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName", "ContainerNotFound", "InvalidResourceName"}
_OTHER_REGION = {
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "TemporaryRedirect",
    "IllegalLocationConstraintException",
}
_REFUSED = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "InvalidSecurity",
    "AuthenticationFailed",
    "InvalidAuthenticationInfo",
    "XAdminUserNotFound",
}


def why(error: Exception, scheme: str, doing: str = "list or read") -> str:
    """Our own sentence for what obstore says, of which only the store's error code and the endpoint are repeated.

    ``doing``: what was tried, such as "list or read".
    """
    said = str(error)
    code = found[1] if (found := re.search(r"<Code>(\w{1,60})</Code>", said)) else ""
    status = found[1] if (found := re.search(r"non-2xx status code: (\d{3})", said)) else ""
    endpoint = (
        found[1] if (found := re.search(r"Error performing [A-Z]+ (https?://[\w.:\[\]-]+)(?=[/? ])", said)) else ""
    )
    credentials = _CREDENTIALS.get(scheme, "")
    if re.search(_NO_CREDENTIALS, said):
        return f"there are no usable credentials: {credentials}"
    if code in _NO_BUCKET:
        return f"there is no such bucket at {endpoint or 'the store'} ({code})"
    if code in _OTHER_REGION or "configured region" in said:
        region = found[1] if (found := re.search(r"<Region>([\w-]{1,40})</Region>", said)) else "the bucket's own"
        return f"the bucket is in another region: set AWS_REGION to {region}"
    if code == "RequestTimeTooSkewed":
        return "the store refuses this machine's clock: set it"
    if code in _REFUSED or status == "401" or re.search(r"Invalid ?Access ?Key|InvalidPrivateKey", said):
        return f"the store refuses the credentials ({code or status or 'malformed'}): {credentials}"
    if status == "403" or isinstance(error, PermissionError) or "os error 13" in said:
        right = "this user" if scheme == "file" else "these credentials"
        rights = "all of it" if "," in doing else "both"
        return f"{right} may not {doing} it ({code or status or 'permission denied'}): grant {rights}"
    if status == "501" or isinstance(error, NotImplementedError) or code == "NotImplemented":
        return "the store cannot put an object on the condition that none is there, which exactly once needs"
    if "os error 28" in said or code in {"QuotaExceeded", "InsufficientCapacity"} or status == "507":
        return "the store is full: make room"
    if "path segment" in said:
        return "an object there has no plain path (an empty part, . or .., or a control character in it): rename it"
    if isinstance(error, FileNotFoundError):
        return "an object disappeared while it was read; try again when it is whole"
    if "Generic Config error" in said:
        return "a variable of the environment for this store (AWS_…, GOOGLE_…, AZURE_…) has a value that it cannot have"
    if status == "404":
        return f"{endpoint} has no such bucket, or is not the store's endpoint (404)"
    if not status and "HTTP error" in said:
        return f"{endpoint or 'the store'} is out of reach: {_unreachable(said)}"
    return f"the store did not answer as expected ({code or status or type(error).__name__}); try again"


def _unreachable(said: str) -> str:
    for sign, reason in (
        ("dns error", "no such host is known"),
        ("ConnectionRefused", "nothing listens there"),
        ("InvalidCertificate", "its TLS certificate is not trusted (SSL_CERT_FILE names others)"),
        ("InvalidContentType", "it does not speak TLS"),
        ("TimedOut", "it does not answer in time"),
    ):
        if sign in said:
            return reason
    return "the connection breaks"
