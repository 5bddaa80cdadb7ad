"""The OpenAPI document, the page of documentation, and docs/api.md: each agrees with the API."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from portal.assemble import Parts
from portal.web.api import frame
from tests.builders import now
from tests.paths import ROOT
from tests.web.test_api import API, DOMAINS, FREE, client, name, token_of
from tests.web_client import ROOT as MOUNT
from tests.web_client import Site


@pytest.fixture
def site(make_parts: Callable[..., Parts]) -> Site:
    return Site(make_parts(local_domains=DOMAINS))


def test_the_document_is_openapi_3_1_and_has_every_route(site: Site) -> None:
    answer = site.browser().get("/api/v1/openapi.json")
    document = answer.json
    OpenAPIV31SpecValidator(document).validate()
    found = {(method.upper(), path) for path, each in document["paths"].items() for method in each}
    routes = {(m, rule.removeprefix("/api/v1").replace("ID", "{id}")) for m, rule in API if rule not in FREE}
    assert found == routes and document["servers"] == [{"url": f"{MOUNT}/api/v1"}]
    names = {each["name"]: each for each in document["paths"]["/messages"]["get"]["parameters"]}
    assert names["symbol"]["schema"]["type"] == "array" and "$ref" in names["tier"]["schema"]["items"]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert {"200", "401", "403", "404", "422", "429", "503"} <= set(operation["responses"])


def test_the_page_documents_every_route(site: Site) -> None:
    browser = site.browser()
    answer = browser.get("/api/v1/", headers={"Accept-Language": "ar"})
    assert answer.status == 200 and '<html lang="en" dir="ltr">' in answer.text and "<script" not in answer.text
    for method, rule in API:
        if rule not in FREE:
            assert f"<code>{method} {rule.removeprefix('/api/v1').replace('ID', '{id}')}</code>" in answer.text
    assert "curl -H &#34;Authorization: Bearer $TOKEN&#34;" in answer.text
    assert browser.get("/api/v1").header("Location") == f"{MOUNT}/api/v1/"


class _Quiet(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


@contextmanager
def served(site: Site) -> Iterator[str]:
    """Serve the application, and return the URL of the API."""
    server = make_server("127.0.0.1", 0, site.app, _Server, _Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{MOUNT}/api/v1"
    finally:
        server.shutdown()
        server.server_close()


def commands(text: str) -> list[str]:
    return re.findall(r"^    (curl .+)$", text.replace("\\\n", ""), re.MULTILINE)


@pytest.mark.slow
def test_the_commands_of_the_docs_work(site: Site) -> None:
    lines = commands((ROOT / "docs" / "api.md").read_text("utf-8"))
    assert len(lines) == 16
    held = [site.hold(), site.hold()]
    secret = token_of(site)
    site.now = now()  # a job leaves out what is held later
    job = client(site).post("/jobs", {"act": "delete", "search": {"state": ["held"]}, "reason": "x"}).json["job"]
    [*_, cursor] = [client(site).get("/messages?limit=1").json["next"]]
    with served(site) as url:
        environ = {"PATH": "/usr/bin:/bin", "URL": url, "TOKEN": secret, "ID": name(held[0]), "NEXT": quote(cursor)}
        environ["JOB"] = job["id"]
        for line in lines:
            done = subprocess.run(
                ["sh", "-c", line], env={**environ, "KEY": "k"}, capture_output=True, text=True, timeout=30, check=False
            )
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            assert '"outcome":"failed"' not in done.stdout


# A value that the document permits may still be rejected: it cannot say what a date or a network is.
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.ignored_auth,
    checks.unsupported_method,
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_answers_to_right_and_wrong_requests_are_as_documented(
    site: Site, monkeypatch: pytest.MonkeyPatch, mode: GenerationMode
) -> None:
    for limit in ("REQUESTS_A_MINUTE", "REFUSALS_A_MINUTE"):
        monkeypatch.setattr(frame, limit, 1_000_000)
    site = Site(site.parts)
    for _ in range(3):
        site.hold()
    schema = schemathesis.openapi.from_wsgi(f"{MOUNT}/api/v1/openapi.json", site.app)
    headers = {"Authorization": f"Bearer {token_of(site)}"}
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    assert len(operations) == len(API) - len(FREE)
    for operation in operations:

        @seed(1)
        @settings(max_examples=6, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def conforms(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(headers=headers, checks=CHECKS)

        conforms()
