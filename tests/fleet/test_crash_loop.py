from control_plane.fleet.crash_loop import CrashLoop, CrashPolicy
from infra.contracts.base import NodeId
from infra.contracts.node import Failure

NODE = NodeId("local")
POLICY = CrashPolicy()
CRASH = Failure(code="replica-lost", detail="killed", is_permanent=False)
BROKEN = Failure(code="unsupported-model", detail="no such model", is_permanent=True)


def waits_after(*failures: Failure) -> list[float]:
    account, waits = CrashLoop(), []
    for failure in failures:
        account = account.after(failure, POLICY, node_id=NODE, now=0)
        waits.append(account.wait_s(0))
    return waits


def test_the_first_failure_is_retried_at_once_and_the_wait_then_grows_to_its_limit():
    waits = waits_after(*[CRASH] * 12)
    assert waits[:6] == [0, 0.2, 1, 2, 4, 8]
    assert waits[-1] == 60


def test_the_loop_is_open_from_the_third_failure_or_a_permanent_one():
    account = (
        CrashLoop()
        .after(CRASH, POLICY, node_id=NODE, now=0)
        .after(CRASH, POLICY, node_id=NODE, now=0)
    )
    assert not account.is_open
    assert account.after(CRASH, POLICY, node_id=NODE, now=0).is_open
    assert CrashLoop().after(BROKEN, POLICY, node_id=NODE, now=0).is_open
    assert waits_after(BROKEN, BROKEN) == [5, 10]


def test_a_start_half_closes_it_and_the_next_failure_opens_it_again():
    account = CrashLoop()
    for _ in range(3):
        account = account.after(CRASH, POLICY, node_id=NODE, now=0)
    half = account.half_closed()
    assert not half.is_open and half.wait_s(0) == 0
    assert half.after(CRASH, POLICY, node_id=NODE, now=0).is_open


def test_health_settles_only_what_failed_before_it():
    account = CrashLoop().after(CRASH, POLICY, node_id=NODE, now=10)
    assert account.after_health_since(9) is account
    assert account.after_health_since(11) == CrashLoop()
