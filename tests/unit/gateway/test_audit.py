"""The audit log under callers who are refused again and again."""

import pytest
from worldtree_gateway.audit import AuditLog
from worldtree_gateway.errors import CredentialsMissing, OperatorsOnly
from worldtree_gateway.identity import Caller, Role

ANN = Caller("acme", "3f9a1c2b", Role.USER)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_who_asks_in_vain_fills_no_disk_and_is_counted_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = AuditLog("all", clock=clock)
    for _ in range(1000):
        log.refused(None, "/s/M", "ipv4:1.2.3.4:5", CredentialsMissing())
    assert len(caplog.records) == 100
    clock.now_s += 1
    log.refused(ANN, "/s/M", "ipv4:1.2.3.4:5", OperatorsOnly("/s/M", "user"))
    last = vars(caplog.records[-1])
    assert {
        name: last[name] for name in ("tenant", "key", "role", "method", "outcome", "reason", "peer", "left_out")
    } == {
        "tenant": "acme",
        "key": "3f9a1c2b",
        "role": "user",
        "method": "/s/M",
        "outcome": "PERMISSION_DENIED",
        "reason": "OPERATORS_ONLY",
        "peer": "ipv4:1.2.3.4:5",
        "left_out": 900,
    }
    log.refused(ANN, "/s/M", "ipv4:1.2.3.4:5", OperatorsOnly("/s/M", "user"))
    assert not hasattr(caplog.records[-1], "left_out")


def test_what_is_not_to_be_written_is_not(caplog: pytest.LogCaptureFixture) -> None:
    AuditLog("off").refused(ANN, "/s/M", "ipv4:1.2.3.4:5", CredentialsMissing())
    assert not caplog.records
