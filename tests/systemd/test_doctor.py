"""``multibinder doctor`` examines a binder whose sockets systemd keeps."""

from __future__ import annotations

import json
from typing import Any

from tests.support import own_host, wait_until
from tests.systemd.machine import Machine

Json = dict[str, Any]


def findings(machine: Machine, check: str) -> list[Json]:
    report: Json = json.loads(machine.run("multibinder", "doctor", "--json").stdout)
    assert report["binder"], report
    return [finding for finding in report["findings"] if finding["check"] == check]


def test_a_full_descriptor_store_and_a_unit_that_is_not_reloaded_are_found(machine: Machine) -> None:
    machine.must("systemctl", "start", "multibinder.service")
    host = own_host()
    bind = "import multibinder, sys; multibinder.bind(sys.argv[1], 8000, owner='doctor')"
    machine.must("env", "MULTIBINDER_SOCK=/run/multibinder/control.sock", "python3", "-c", bind, host)
    drop_in = "/etc/systemd/system/multibinder.service.d/doctor.conf"
    try:
        wait_until(
            lambda: int(machine.show("multibinder.service", "NFileDescriptorStore")) > 0,
            "the listener is in the descriptor store",
        )
        assert findings(machine, "store") == []
        assert findings(machine, "unit") == []

        stored = int(machine.show("multibinder.service", "NFileDescriptorStore"))
        machine.write(drop_in, f"[Service]\nFileDescriptorStoreMax={stored}\n")
        machine.must("systemctl", "daemon-reload")
        [finding] = findings(machine, "store")
        assert finding["what"] == f"the descriptor store is full: {stored} of {stored}"
        assert finding["where"] == "multibinder.service"

        assert findings(machine, "unit") == []
        machine.must("touch", "-d", "+1 minute", drop_in)
        [finding] = findings(machine, "unit")
        assert finding["remedy"] == "systemctl daemon-reload"
    finally:
        machine.must("rm", "-f", drop_in)
        machine.must("systemctl", "daemon-reload")
        machine.must("env", "MULTIBINDER_SOCK=/run/multibinder/control.sock",
                     "multibinder", "release", "--owner", "doctor", f"{host}:8000")  # fmt: skip
    assert findings(machine, "store") == []
