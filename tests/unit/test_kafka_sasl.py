"""What each SASL mechanism is given, and what is said where it cannot be."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from workers.errors import EnvironmentFault
from workers.kafka_security import sasl
from workers.settings import KafkaSettings


def settings(mechanism: str, **more: Any) -> KafkaSettings:
    return KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism=mechanism, **more)


def told(kafka: KafkaSettings) -> str:
    with pytest.raises(EnvironmentFault) as error:
        sasl.arguments(kafka)
    return str(error.value)


@pytest.mark.parametrize(
    ("mechanism", "library", "extra"), [("AWS_MSK_IAM", "botocore", "msk"), ("GSSAPI", "gssapi", "kerberos")]
)
def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, mechanism: str, library: str, extra: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    said = told(settings(mechanism))
    assert f"kafka.sasl_mechanism {mechanism} needs {library}, which is not installed" in said
    assert said.endswith(f"pip install 'stream-embedder[{extra}]'")


def test_kerberos_is_told_the_brokers_principal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", sys)
    assert sasl.arguments(settings("GSSAPI")) == {"sasl_mechanism": "GSSAPI", "sasl_kerberos_service_name": "kafka"}
    given = sasl.arguments(settings("GSSAPI", kerberos_service="k", kerberos_host="broker.example"))
    assert (given["sasl_kerberos_service_name"], given["sasl_kerberos_domain_name"]) == ("k", "broker.example")


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that knows nothing of AWS."""
    import os

    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere/config")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")
    return monkeypatch


def test_aws_credentials_are_looked_for(no_aws: pytest.MonkeyPatch) -> None:
    kafka = settings("AWS_MSK_IAM")
    assert told(kafka) == "kafka.sasl_mechanism AWS_MSK_IAM finds no AWS region: set AWS_DEFAULT_REGION"
    no_aws.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert "finds no AWS credentials: set AWS_ACCESS_KEY_ID" in told(kafka)
    no_aws.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    assert sasl.arguments(kafka) == {"sasl_mechanism": "AWS_MSK_IAM"}
    no_aws.setenv("AWS_PROFILE", "absent")
    assert "AWS gives no credentials: The config profile (absent) could not be found" in told(kafka)


def test_aws_signs_as_botocore_does(no_aws: pytest.MonkeyPatch) -> None:
    """kafka-python's own signature of an MSK login, against the one that AWS's library makes of the same request."""
    import json

    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials
    from kafka.net.sasl.msk import AwsMskIamClient

    ours = AwsMskIamClient("b-1.msk.example", "AKIA", "canary+/=", "eu-west-1", token="to/ken=")
    said = json.loads(ours.first_message())
    no_aws.setattr("botocore.auth.get_current_datetime", lambda: _moment(said["x-amz-date"]), raising=False)
    signer = SigV4QueryAuth(Credentials("AKIA", "canary+/=", "to/ken="), "kafka-cluster", "eu-west-1", expires=900)
    request = AWSRequest("GET", "https://b-1.msk.example/?Action=kafka-cluster%3AConnect")
    signer.add_auth(request)
    assert f"X-Amz-Date={said['x-amz-date']}" in request.url
    assert request.url.endswith(f"X-Amz-Signature={said['x-amz-signature']}")
    assert "canary" not in json.dumps(said)


def _moment(text: str) -> Any:
    import datetime

    return datetime.datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
