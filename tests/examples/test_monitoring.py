"""The alert rules and the dashboard use only metrics that the exporter has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import require
from tests.support.metrics import documented, series_names

EXAMPLES = Path(__file__).parents[2] / "examples"
RULES = EXAMPLES / "prometheus" / "rules.yml"
SCRAPE = EXAMPLES / "prometheus" / "scrape.yml"
DASHBOARD = EXAMPLES / "grafana" / "dashboard.json"

#: Labels that the scraper adds to those of docs/metrics.md.
SCRAPERS = {"job", "instance"}


def rules() -> dict[str, dict[str, str]]:
    """Return every alert with its keys. Each key is on one line with its value; promtool checks the rest."""
    found: dict[str, dict[str, str]] = {}
    for line in RULES.read_text().splitlines():
        if match := re.fullmatch(r"      - alert: (\w+)", line):
            assert match[1] not in found
            rule = found[match[1]] = {}
        elif match := re.fullmatch(r" {8,10}(\w+): (.+)", line):
            assert match[1] not in rule
            rule[match[1]] = match[2]
        else:
            assert line.strip() in ("", "groups:", "rules:", "- name: multibinder", "labels:", "annotations:") or (
                line.lstrip().startswith("#")
            ), line
    return found


def dashboard() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return parsed


def queries() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\bmultibinder_\w+", re.sub(r'"[^"]*"', '""', expression)))


def labels_in(expression: str) -> Iterator[tuple[str, str]]:
    """Return the metric and the label of each selector."""
    for name, inside in re.findall(r"\b(multibinder_\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', inside)):
            yield name, label


@pytest.mark.parametrize("expression", [rule["expr"] for rule in rules().values()] + [*queries()])
def test_a_query_names_only_metrics_and_labels_that_exist(expression: str) -> None:
    named = metrics_in(expression)
    assert named or expression == 'up{job="multibinder"} == 0'
    assert named - series_names() == set()
    for metric, label in labels_in(expression):
        name = re.sub("_(bucket|sum|count)$", "", metric) if metric not in documented() else metric
        assert label in documented()[name].labels | SCRAPERS | {"le"}, f"{metric} has no label {label}"
    # Counters are shown as rates.
    for metric in named:
        if metric.endswith(("_total", "_bucket")):
            assert re.search(rf"(rate|increase)\({metric}", expression), metric


def test_a_value_of_a_label_in_a_rule_is_one_that_exists() -> None:
    text = RULES.read_text() + "".join(queries())
    document = (EXAMPLES.parent / "docs" / "metrics.md").read_text()
    for label, value in re.findall(r'\b(state|role|reason|keeper|source|method)="(\w+)"', text):
        [row] = [line for line in document.splitlines() if re.match(rf"\| `{label}` \|", line)]
        assert f"`{value}`" in row


def test_each_alert_says_how_urgent_it_is_what_happened_and_what_to_do() -> None:
    assert len(rules()) >= 15
    for name, rule in rules().items():
        assert rule["severity"] in ("page", "ticket"), name
        assert rule["summary"].startswith('"{{ $labels.'), name
        assert len(rule["remedy"]) > 10, name
        for label in re.findall(r"\$labels\.(\w+)", rule["summary"] + rule["remedy"]):
            known = {label for metric in metrics_in(rule["expr"]) for label in documented()[metric].labels}
            assert label in known | SCRAPERS, f"{name}: no series has the label {label}"


def test_the_alerts_are_about_every_way_to_fail() -> None:
    asked = set().union(*(metrics_in(rule["expr"]) for rule in rules().values()))
    assert {
        "multibinder_up", "multibinder_listener_orphan_seconds", "multibinder_listener_stalled_seconds",
        "multibinder_listener_drops_total", "multibinder_listener_kept", "multibinder_keeper_sockets",
        "multibinder_instance_up", "multibinder_instance_failures_total", "multibinder_instance_fallback",
        "multibinder_instance_config_changed", "multibinder_instance_old_workers",
    } <= asked  # fmt: skip


def test_the_dashboard_can_be_imported() -> None:
    board = dashboard()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert board["templating"]["list"][0]["type"] == "datasource"
    places: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & places, f"{panel['title']} overlaps another"
        places |= cells
        if panel["type"] != "row":
            assert panel["description"]
            # No data source of a particular installation.
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_promtool_reports_no_problem_in_the_rules_and_the_scrape() -> None:
    promtool = shutil.which("promtool")
    require("promtool", promtool, "there is no promtool (Debian package prometheus)")
    for what, path in (("rules", RULES), ("config", SCRAPE)):
        done = subprocess.run([str(promtool), "check", what, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr


# In the format of 'promtool test rules': a value of each series for each minute.
_SCENARIOS = """
rule_files: ["{rules}"]
evaluation_interval: 1m
tests:
{tests}
"""
_SCENARIO = """
  - interval: 1m
    input_series:
{series}
    alert_rule_test:
      - {{eval_time: {minute}m, alertname: {alert}, exp_alerts: [{expected}]}}
"""
_ADDRESS = 'job="m", instance="h", address="1.2.3.4:80", name=""'
_INSTANCE = 'job="m", instance="h", name="web"'
_RUN = 'job="m", instance="h", name="web", driver="run"'


@pytest.mark.parametrize(
    ("alert", "labels", "bad", "good"),
    [
        ("MultibinderDown", 'instance="h"', {"up{%s}": "0+0x99"}, {"up{%s}": "1+0x99"}),
        ("MultibinderListenerOrphan", _ADDRESS, {"listener_orphan_seconds{%s}": "0+60x99"},
         {"listener_orphan_seconds{%s}": "0+0x99"}),
        ("MultibinderListenerDrops", _ADDRESS, {"listener_drops_total{%s}": "0+3x99"},
         {"listener_drops_total{%s}": "7+0x99"}),
        ("MultibinderReloadFailed", _INSTANCE, {"instance_failures_total{%s}": "0x89 1x10"},
         {"instance_failures_total{%s}": "1+0x99"}),
        ("MultibinderConfigDrift", _INSTANCE, {"instance_config_changed{%s}": "0x5 1x94"},
         {"instance_config_changed{%s}": "0x60 1x39"}),
        ("MultibinderInstanceDown", _INSTANCE, {"instance_up{%s}": "1x80 0x19"},
         {"instance_up{%s}": "0+0x99", 'instance_state{%s, state="stopped"}': "1+0x99"}),
        ("MultibinderInstanceDown", _INSTANCE,
         {"instance_up{%s}": "0+0x99", 'instance_state{%s, state="stopped"}': "1+0x99",
          "instance_last_failure_timestamp_seconds{%s}": "9+0x99",
          "instance_last_success_timestamp_seconds{%s}": "8+0x99"},
         {"instance_up{%s}": "1+0x99"}),
        ("MultibinderInstanceGaveUp", _RUN, {"instance_gave_up{%s}": "0x60 1x39"}, {"instance_gave_up{%s}": "0+0x99"}),
        ("MultibinderCopiesMissing", _RUN,
         {"instance_workers{%s}": "1+0x99", "instance_copies_wanted{%s}": "2+0x99"},
         {"instance_workers{%s}": "2+0x99", "instance_copies_wanted{%s}": "2+0x99"}),
        ("MultibinderCopiesCrash", _RUN, {"instance_restarts_total{%s}": "0+1x99"},
         {"instance_restarts_total{%s}": "7+0x99"}),
        ("MultibinderCanaryWaits", _RUN, {"instance_canary{%s}": "1+0x99"}, {"instance_canary{%s}": "0x60 1x39"}),
        ("MultibinderStoreNearlyFull", 'instance="h"',
         {"keeper_sockets{%s}": "95+0x99", "keeper_sockets_limit{%s}": "100+0x99"},
         {"keeper_sockets{%s}": "0+0x99", "keeper_sockets_limit{%s}": "0+0x99"}),
        ("MultibinderListenerNotKept", _ADDRESS,
         {"listener_kept{%s}": "0+0x99", 'keeper_sockets_limit{instance="h"}': "9+0x99"},
         {"listener_kept{%s}": "0+0x99", 'keeper_sockets_limit{instance="h"}': "0+0x99"}),
    ],
)  # fmt: skip
def test_an_alert_fires_for_its_condition_and_not_without_it(
    tmp_path: Path, alert: str, labels: str, bad: dict[str, str], good: dict[str, str]
) -> None:
    promtool = shutil.which("promtool")
    require("promtool", promtool, "there is no promtool (Debian package prometheus)")
    for series, fires in ((bad, True), (good, False)):
        lines = "\n".join(
            f"      - {{series: '{'multibinder_' + name.replace('%s', labels)}', values: '{values}'}}"
            for name, values in series.items()
        )
        # A firing alert has annotations, which this test does not compare. So it checks the failure of 'nothing fires'.
        scenario = _SCENARIO.format(series=lines, minute=95, alert=alert, expected="")
        path = tmp_path / "scenario.yml"
        path.write_text(_SCENARIOS.format(rules=RULES, tests=scenario))
        done = subprocess.run([str(promtool), "test", "rules", path], capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fires, output
        assert (f"alertname: {alert}" in output or f'alertname="{alert}"' in output) == fires, output
