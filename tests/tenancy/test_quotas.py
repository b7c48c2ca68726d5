import random

import pytest

from control_plane.tenancy.quotas import Quotas
from infra.contracts.tenancy import TenantLimits, TenantName
from infra.errors import RateLimited

ACME, BETA = TenantName("acme"), TenantName("beta")


def test_a_minutes_requests_may_come_at_once_and_come_back_evenly():
    quotas, limits = Quotas(), TenantLimits(requests_per_minute=60)
    for _ in range(60):
        quotas.admit(ACME, limits, now=100)

    with pytest.raises(RateLimited) as refused:
        quotas.admit(ACME, limits, now=100.5)
    assert refused.value.facts["retry_after_s"] == pytest.approx(0.5)
    quotas.admit(ACME, limits, now=101)
    with pytest.raises(RateLimited):
        quotas.admit(ACME, limits, now=101)
    quotas.admit(BETA, limits, now=101)  # one tenant's hunger is not another's


def test_tokens_are_paid_for_after_the_fact():
    quotas, limits = Quotas(), TenantLimits(tokens_per_minute=600)
    quotas.admit(ACME, limits, now=0)
    quotas.let_go(ACME, tokens=1200)  # twice a minute's worth

    with pytest.raises(RateLimited) as refused:
        quotas.admit(ACME, limits, now=0)
    assert refused.value.facts["retry_after_s"] == pytest.approx(60, abs=0.2)
    with pytest.raises(RateLimited):
        quotas.admit(ACME, limits, now=59)
    quotas.admit(ACME, limits, now=61)


def test_places_are_given_back():
    quotas, limits = Quotas(), TenantLimits(concurrency=2)
    quotas.admit(ACME, limits, now=0)
    quotas.admit(ACME, limits, now=0)
    with pytest.raises(RateLimited):
        quotas.admit(ACME, limits, now=0)
    quotas.let_go(ACME, tokens=0)
    quotas.admit(ACME, limits, now=0)


def test_who_is_refused_has_taken_nothing():
    quotas = Quotas()
    limits = TenantLimits(requests_per_minute=10, concurrency=1)
    quotas.admit(ACME, limits, now=0)
    for _ in range(100):
        with pytest.raises(RateLimited):
            quotas.admit(ACME, limits, now=0)
    quotas.let_go(ACME, tokens=0)

    for _ in range(9):
        quotas.admit(ACME, limits, now=0)
        quotas.let_go(ACME, tokens=0)


def test_a_clock_that_goes_back_gives_nothing_away():
    quotas, limits = Quotas(), TenantLimits(requests_per_minute=1)
    quotas.admit(ACME, limits, now=1000)
    for now in (0, 1000, 1059):
        with pytest.raises(RateLimited):
            quotas.admit(ACME, limits, now=now)
    quotas.admit(ACME, limits, now=1061)


def test_no_tenant_gets_more_than_its_minutes_over_a_day():
    """Random traffic: never more than one burst above the even rate, and never much less."""
    chance, quotas = random.Random(5), Quotas()
    limits = TenantLimits(requests_per_minute=30)
    now, admitted = 0.0, 0
    while now < 24 * 3600:
        now += chance.expovariate(2.0)
        try:
            quotas.admit(ACME, limits, now=now)
        except RateLimited:
            continue
        admitted += 1
        quotas.let_go(ACME, tokens=9)
    assert 0.99 * now / 2 <= admitted <= now / 2 + 30
    assert quotas.running(ACME) == 0
