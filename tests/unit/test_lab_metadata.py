"""The lab's metadata service refuses what the real ones refuse, and fails as it is told to."""

from __future__ import annotations

import pytest

from proa.lab import metadata
from proa.lab.metadata import Ec2, Faults, Instance, Request, faults_of

WISH = "x-aws-ec2-metadata-token-ttl-seconds"


def ask(cloud: metadata.Cloud, path: str, method: str = "GET", **headers: str) -> metadata.Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return cloud(Instance(), Request(method, path, {}, named))


def token(cloud: Ec2, **headers: str) -> metadata.Reply:
    return cloud(Instance(), Request("PUT", "/latest/api/token", {}, headers))


def test_a_token_of_ec2_opens_what_is_shut_without_one() -> None:
    cloud = Ec2("v2")
    path = "/latest/meta-data/instance-id"
    assert ask(cloud, path).status == 401
    assert ask(cloud, path, x_aws_ec2_metadata_token="guessed").status == 401
    given = token(cloud, **{WISH: "60"})
    assert given.hops == 1  # it does not travel beyond the machine
    assert ask(cloud, path, x_aws_ec2_metadata_token=given.body.decode()).status == 200


@pytest.mark.parametrize("seconds", ["", "0", "21601", "-1", "x", "9" * 5000])
def test_a_token_is_given_for_up_to_six_hours(seconds: str) -> None:
    assert token(Ec2("v2"), **{WISH: seconds}).status == 400


def test_a_token_that_came_through_a_proxy_is_refused() -> None:
    assert token(Ec2("v2"), **{WISH: "60", "x-forwarded-for": "10.0.0.1"}).status == 403


def test_older_services_know_no_tokens() -> None:
    for mode in ("v1", "old"):
        assert token(Ec2(mode), **{WISH: "60"}).status == 405
    assert ask(Ec2("old"), "/latest/meta-data/instance-id").status == 404
    assert ask(Ec2("old"), "/2009-04-04/meta-data/instance-id").status == 200


@pytest.mark.parametrize(
    ("cloud", "path", "status"),
    [
        (metadata.gce, "/computeMetadata/v1/", 403),
        (metadata.azure, "/metadata/instance", 400),
        (metadata.oracle, "/opc/v2/instance/", 403),
    ],
)
def test_those_who_want_a_header_refuse_without(
    cloud: metadata.Cloud, path: str, status: int
) -> None:
    assert ask(cloud, path).status == status


def test_azure_wants_a_version_that_it_knows() -> None:
    request = Request("GET", "/metadata/instance", {"api-version": "1999"}, {"metadata": "true"})
    assert metadata.azure(Instance(), request).status == 400


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("instance/network-interfaces/0/ip", b"10.0.0.5"),
        ("instance/network-interfaces/", b"0/"),
        ("instance/network-interfaces/0/access-configs/0/external-ip", b"203.0.113.7"),
        ("instance/attributes/user-data-encoding", b"base64"),
        ("project/project-id", b"project"),
    ],
)
def test_google_answers_item_by_item_too(path: str, text: bytes) -> None:
    reply = ask(metadata.gce, f"/computeMetadata/v1/{path}", metadata_flavor="Google")
    assert (reply.status, reply.body) == (200, text)
    assert reply.headers["Metadata-Flavor"] == "Google"
    for none in ("none", "instance/network-interfaces/7", "project/project-id/x"):
        reply = ask(metadata.gce, f"/computeMetadata/v1/{none}", metadata_flavor="Google")
        assert reply.status == 404


def test_faults_are_named_in_words() -> None:
    assert faults_of(["slow=0.5", "fail=3", "silent", "only=user-data"]) == Faults(
        slow=0.5, fail=3, silent=True, only="user-data"
    )
    for word in ("nonsense", "fail=x", "__class__=x"):
        with pytest.raises(ValueError, match=r"no fault|invalid"):
            faults_of([word])
