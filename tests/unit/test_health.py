"""Health over real HTTP on a loopback socket: what each page says, to whom, and that the server leaves signals alone."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Sequence

import pytest
from prometheus_client.metrics_core import Metric

from nats_taskflow.doors.http.health import HealthServer, MetricsPage
from nats_taskflow.errors import ConfigError
from nats_taskflow.http.server import is_loopback, names_loopback
from nats_taskflow.observe.health import HealthCheck
from nats_taskflow.observe.metrics import Metrics


class Patient:
    """Probes whose answers a test sets."""

    def __init__(self) -> None:
        self.nats = HealthCheck("nats", ok=True)
        self.store = HealthCheck("store", ok=True)

    def live(self) -> Sequence[HealthCheck]:
        return [HealthCheck("loop", ok=True)]

    def ready(self) -> Sequence[HealthCheck]:
        return [self.nats, self.store]

    def started(self) -> Sequence[HealthCheck]:
        return [HealthCheck("recovery", ok=False, reason="reading the journal")]


async def ask(address: str, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, dict[str, str], str]:
    """Send one request; give status, headers (lower case) and body."""
    name, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(name.strip("[]"), int(port))
    told = address if host is None else host
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {told}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status, *lines = head.split("\r\n")
    return int(status.split()[1]), {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}, body


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
async def address(patient: Patient) -> AsyncIterator[str]:
    server = HealthServer("127.0.0.1:0", patient, Metrics().registry)
    yield await server.start()
    await server.stop()


async def test_port_zero_gives_a_free_port_and_says_which(address: str) -> None:
    assert not address.endswith(":0")
    assert (await ask(address, "/livez"))[0] == 200


async def test_a_well_worker_answers_ok_and_is_never_cached(address: str) -> None:
    for page in ("/livez", "/readyz", "/healthz"):
        status, headers, body = await ask(address, page)
        assert (status, body, headers["cache-control"]) == (200, "ok\n", "no-store")


async def test_losing_nats_makes_it_not_ready_but_alive_with_the_reason_told(address: str, patient: Patient) -> None:
    patient.nats = HealthCheck("nats", ok=False, reason="disconnected for 3s")
    status, _, body = await ask(address, "/readyz")
    assert (status, body) == (503, "[-]nats failed: disconnected for 3s\nreadyz check failed\n")
    assert (await ask(address, "/livez"))[0] == 200


async def test_verbose_lists_every_check(address: str, patient: Patient) -> None:
    assert (await ask(address, "/readyz?verbose"))[2] == "[+]nats ok\n[+]store ok\nreadyz check passed\n"
    patient.store = HealthCheck("store", ok=False, reason="disk full")
    assert (await ask(address, "/readyz?verbose"))[2] == "[+]nats ok\n[-]store failed: disk full\nreadyz check failed\n"


async def test_startup_says_what_it_still_waits_for(address: str) -> None:
    status, _, body = await ask(address, "/startupz")
    assert status == 503
    assert "reading the journal" in body


async def test_metrics_are_served_in_the_text_format(address: str) -> None:
    status, headers, body = await ask(address, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=")
    assert "taskflow_build_info{" in body
    assert 'taskflow_flows{status="waiting"} 0.0' in body


class Counted:
    """A registry that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def collect(self) -> list[Metric]:
        self.asked += 1
        return []


def test_the_metrics_are_made_at_most_once_a_second_however_many_ask() -> None:
    registry, now = Counted(), 100.0
    page = MetricsPage(registry, lambda: now)  # type: ignore[arg-type]  # as far as it is asked
    for _ in range(1000):
        page.text()
        now += 0.01
    assert registry.asked == 10


async def test_every_scraper_has_the_same_page_within_a_second(patient: Patient) -> None:
    registry = Counted()
    server = HealthServer("127.0.0.1:0", patient, registry)  # type: ignore[arg-type]  # as above
    address = await server.start()
    answers = [await ask(address, "/metrics") for _ in range(20)]
    assert {status for status, *_ in answers} == {200}
    assert registry.asked < len(answers) / 2
    await server.stop()


async def test_without_a_registry_there_is_no_metrics_page(patient: Patient) -> None:
    server = HealthServer("127.0.0.1:0", patient, None)
    address = await server.start()
    assert (await ask(address, "/metrics"))[0] == 404
    await server.stop()


async def test_an_unknown_page_is_404_and_names_the_pages(address: str) -> None:
    status, _, body = await ask(address, "/admin")
    assert status == 404
    assert "/readyz" in body


async def test_head_has_the_headers_without_the_body(address: str) -> None:
    status, headers, body = await ask(address, "/livez", method="HEAD")
    assert (status, headers["content-length"], body) == (200, "3", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_anything_but_get_and_head_is_405(address: str, method: str) -> None:
    status, headers, _ = await ask(address, "/livez", method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "", "127.0.0.1.evil.example", "localhost.evil.example", "[::2]"])
async def test_a_loopback_server_refuses_other_host_names(address: str, host: str) -> None:
    assert (await ask(address, "/metrics", host=host))[0] == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8642", "127.0.0.1", "127.0.0.53:1", "[::1]:8642", "[::1]"])
async def test_a_loopback_server_answers_to_every_loopback_name(address: str, host: str) -> None:
    assert (await ask(address, "/livez", host=host))[0] == 200


async def test_a_public_server_answers_to_any_host_name(patient: Patient) -> None:
    server = HealthServer("0.0.0.0:0", patient, None)
    address = (await server.start()).replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - what is tested
    assert (await ask(address, "/livez", host="pod-3.internal"))[0] == 200
    await server.stop()


def test_loopback_is_recognised_by_address_not_by_likeness() -> None:
    assert is_loopback("::1")
    assert not is_loopback("127.0.0.1.nip.io")
    assert not names_loopback("")


async def test_rubbish_instead_of_http_harms_nothing(address: str) -> None:
    name, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    writer.write(b"\x16\x03\x01\x00\xa5 this is no HTTP\r\n\r\n")
    assert b"400" in await reader.read()
    writer.close()
    await writer.wait_closed()
    assert (await ask(address, "/livez"))[0] == 200


async def test_serving_leaves_the_processs_signal_handlers_alone(patient: Patient) -> None:
    before = [signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)]
    server = HealthServer("127.0.0.1:0", patient, None)
    await server.start()
    assert [signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)] == before
    await server.stop()


async def test_a_taken_port_is_a_configuration_error_that_names_the_setting(patient: Patient) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"http\.bind: cannot listen on 127\.0\.0\.1:\d+ \(address already in use\)"):
            await HealthServer(f"127.0.0.1:{taken.getsockname()[1]}", patient, None).start()


async def test_stop_works_with_a_client_that_keeps_its_connection_and_may_be_called_again(patient: Patient) -> None:
    server = HealthServer("127.0.0.1:0", patient, None)
    address = await server.start()
    name, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert await reader.readuntil(b"ok\n")
    async with asyncio.timeout(5):
        await server.stop()
        await server.stop()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_run_serves_until_it_is_cancelled(patient: Patient) -> None:
    server = HealthServer("127.0.0.1:0", patient, None)
    running = asyncio.create_task(server.run())
    async with asyncio.timeout(5):
        await server.up.wait()
    assert (await ask(server.address, "/livez"))[0] == 200
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(OSError, match="onnect"):
        await ask(server.address, "/livez")
