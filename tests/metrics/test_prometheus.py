"""A real Prometheus scrapes the running program; it is asked what the alerts and the dashboard ask.
"""
import json
import re
import time

import pytest

from tests.lib.blk_client import IN, OUT, Blk
from tests.lib.command import ROOT
from tests.lib.prometheus import free_port, prometheus, promtool
from tests.lib.target import Target

ALERTS = ROOT / "docs/monitoring/alerts.yml"
DASHBOARD = json.loads((ROOT / "docs/monitoring/grafana.json").read_text())
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ['{alerts}']
scrape_configs:
  - job_name: vhostrt
    static_configs: [{{targets: ['127.0.0.1:{port}']}}]
"""


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """(target, Prometheus that scrapes it)"""
    port = free_port()
    with Target(disks=["malloc:8M"], extra=["--metrics", f"127.0.0.1:{port}"]) as target:
        config = CONFIG.format(alerts=ALERTS, port=port)
        with prometheus(tmp_path_factory.mktemp("prometheus"), config) as running:
            yield target, running


def until(condition):
    """Wait until condition() is true, and return what it was."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
    return found


def test_what_is_counted_arrives(scraped):
    target, server = scraped
    with Blk(target.socket(), queues=2) as blk:
        for _ in range(7):
            blk.write(0, bytes(1024), 1)
        blk.read(0, 512, 0)
        assert blk.request(OUT, 1 << 40, out=bytes(512)).status == 1
        until(lambda: server.query('vhostrt_queue_requests_total{op="write",queue="1"} == 7'))
        assert server.query('sum by (op) (vhostrt_queue_bytes_total{op=~"read|write"})') == [
            ({"op": "read"}, 512.0), ({"op": "write"}, 7 * 1024.0 + 512)]
        assert server.query('vhostrt_queue_errors_total{cause="out_of_range"} > 0')[0][1] == 1
        ((_, latency),) = server.query(
            'histogram_quantile(0.5, vhostrt_queue_latency_seconds_bucket{op="write",queue="1"})')
        assert 0 < latency < 10
        ((labels, up),) = server.query('up{job="vhostrt"}')
        assert up == 1
        targets = server.ask("targets")["activeTargets"]
        assert [each["lastError"] for each in targets] == [""]


def test_an_alert_fires(scraped):
    target, server = scraped
    with Blk(target.socket()) as blk:
        ring = blk.rings[0]
        blk.read(0, 512)
        ring.submit(ring.chain([(0xdead0000, 16, 0), (0xdead0000, 1, 2)]))
        (alert,) = until(lambda: [each for each in server.ask("alerts")["alerts"]
                                  if each["labels"]["alertname"] == "VhostrtQueueBroken"])
        assert alert["labels"]["controller"] == target.socket().name
        assert alert["state"] == "firing"
    until(lambda: not [each for each in server.ask("alerts")["alerts"]
                       if each["labels"]["alertname"] == "VhostrtQueueBroken"])


def test_the_rules_are_taken(scraped):
    _, server = scraped
    rules = until(lambda: [rule for group in server.ask("rules")["groups"]
                           for rule in group["rules"] if rule["health"] != "unknown"])
    assert {rule["health"] for rule in rules} == {"ok"}, rules
    assert "SUCCESS" in promtool("check", "rules", str(ALERTS))


def expressions():
    """Return (panel, expression) of the dashboard, its variables filled in."""
    found = []
    for panel in DASHBOARD["panels"]:
        for each in panel.get("targets", ()):
            text = each["expr"]
            for name, value in (("$__rate_interval", "30s"), ("$__range", "1h"),
                                ("$instance", ".*"), ("$controller", ".*")):
                text = text.replace(name, value)
            assert "$" not in text
            found.append((panel["title"], text))
    return found


def test_the_dashboard_has_something_to_show(scraped):
    """Every panel finds series once there has been a request of each kind for two scrapes."""
    target, server = scraped

    with Blk(target.socket()) as blk:
        def empty():
            blk.write(0, bytes(512))
            blk.read(0, 512)
            blk.flush()
            blk.request(IN, 1 << 40, read=512)
            return [title for title, text in expressions() if not server.query(text)]
        until(lambda: not empty())
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles) and len(expressions()) > 25


# Alerts: (series that make it fire, when it is looked at); each of them alone.
FIRING = {
    "VhostrtDown": ({'up{job="vhostrt"}': "0x10"}, "5m"),
    "VhostrtRestarted": ({'process_start_time_seconds{job="vhostrt"}': "1 1 1 2 2"}, "4m"),
    "VhostrtRequestStuck": ({'vhostrt_queue_oldest_request_seconds': "31x5"}, "1m"),
    "VhostrtQueueBroken": ({"vhostrt_queue_broken": "1x5"}, "1m"),
    "VhostrtIoErrors": ({'vhostrt_queue_errors_total{cause="io_error"}': "0 0 1 1 1"}, "4m"),
    "VhostrtDiskGone": ({'vhostrt_queue_errors_total{cause="no_device"}': "0 0 1 1 1"}, "4m"),
    "VhostrtBadRequests": ({'vhostrt_queue_errors_total{cause="read_only"}': "0 0 1 1 1"}, "4m"),
    "VhostrtLatencyHigh": ({
        'vhostrt_queue_latency_seconds_bucket{op="read",le="0.1"}': "0+10x30",
        'vhostrt_queue_latency_seconds_bucket{op="read",le="0.2"}': "0+20x30",
        'vhostrt_queue_latency_seconds_bucket{op="read",le="+Inf"}': "0+20x30"}, "25m"),
    "VhostrtReactorSaturated": ({'vhostrt_reactor_busy_seconds_total{reactor="1"}': "0+59x40",
                                 'vhostrt_reactor_idle_seconds_total{reactor="1"}': "0+1x40"},
                                "30m"),
    "VhostrtEventsRefused": ({"vhostrt_reactor_events_refused_total": "0 0 1 1 1"}, "4m"),
    "VhostrtDescriptorsRunOut": ({'process_open_fds{job="vhostrt"}': "90x20",
                                  'process_max_fds{job="vhostrt"}': "100x20"}, "10m"),
}
# The same, of a program that is well.
QUIET = {
    'up{job="vhostrt"}': "1x40", 'process_start_time_seconds{job="vhostrt"}': "1x40",
    "vhostrt_queue_oldest_request_seconds": "29x40", "vhostrt_queue_broken": "0x40",
    'vhostrt_queue_errors_total{cause="io_error"}': "5x40",
    'vhostrt_queue_errors_total{cause="no_device"}': "5x40",
    'vhostrt_queue_errors_total{cause="read_only"}': "5x40",
    'vhostrt_queue_errors_total{cause="unsupported"}': "0+1x40",
    'vhostrt_queue_latency_seconds_bucket{op="read",le="0.1"}': "0+999x40",
    'vhostrt_queue_latency_seconds_bucket{op="read",le="+Inf"}': "0+1000x40",
    'vhostrt_reactor_busy_seconds_total{reactor="1"}': "0+50x40",
    'vhostrt_reactor_idle_seconds_total{reactor="1"}': "0+10x40",
    "vhostrt_reactor_events_refused_total": "5x40",
    'process_open_fds{job="vhostrt"}': "70x40", 'process_max_fds{job="vhostrt"}': "100x40",
}


def check_firing(folder, series, at, names):
    """Have promtool find that just these alerts fire at a time, of these series."""
    test = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [{
        "interval": "1m",
        "input_series": [{"series": key, "values": value} for key, value in series.items()],
        "promql_expr_test": [{
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": at,
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in names]}],
    }]}
    path = folder / "test.yml"
    path.write_text(json.dumps(test))       # which is YAML as well
    assert "SUCCESS" in promtool("test", "rules", str(path))


@pytest.mark.parametrize("name", FIRING)
def test_each_alert_fires_when_it_should(name, tmp_path):
    series, at = FIRING[name]
    check_firing(tmp_path, series, at, [name])


def test_no_alert_fires_when_all_is_well(tmp_path):
    check_firing(tmp_path, QUIET, "39m", [])
    assert set(re.findall(r"- alert: (\w+)", ALERTS.read_text())) == set(FIRING)
