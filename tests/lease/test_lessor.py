"""The lessor: replicated grants and attachments, and the leader's clock."""

from __future__ import annotations

import random

import pytest

from kvserver import errors
from kvserver.lease import Lessor


def test_grants_are_at_least_the_minimum() -> None:
    lessor = Lessor(minimum_ttl=2)
    assert lessor.grant(1, 1).ttl == 2
    assert lessor.grant(2, 0).ttl == 2
    assert lessor.grant(3, -4).ttl == 2
    assert lessor.grant(4, 9_000_000_000).ttl == 9_000_000_000
    assert lessor.grant(-5, 10).ttl == 10
    assert len(lessor) == 5


@pytest.mark.parametrize(
    ("lease_id", "ttl", "error"),
    [
        (1, 60, errors.LeaseExistsError),
        (2, 9_000_000_001, errors.LeaseTtlTooLargeError),
        (0, 60, errors.LeaseNotFoundError),
    ],
)
def test_what_cannot_be_granted(lease_id: int, ttl: int, error: type[errors.KvError]) -> None:
    lessor = Lessor()
    lessor.grant(1, 60)
    with pytest.raises(error):
        lessor.grant(lease_id, ttl)
    assert lessor.leases() == [1]


def test_revoke_answers_the_keys_in_order() -> None:
    lessor = Lessor()
    lessor.grant(1, 60)
    for key in (b"c", b"a", b"b", b"x"):
        lessor.attach(1, key)
    lessor.detach(1, b"x")
    lessor.detach(1, b"never")
    assert lessor.time_to_live(1, 0, keys=True).keys == [b"a", b"b", b"c"]
    assert lessor.time_to_live(1, 0).keys == []
    assert lessor.revoke(1) == [b"a", b"b", b"c"]
    assert not lessor.exists(1)
    for call in (lambda: lessor.revoke(1), lambda: lessor.time_to_live(1, 0), lambda: lessor.renew(1, 0)):
        with pytest.raises(errors.LeaseNotFoundError):
            call()
    lessor.detach(1, b"a")
    lessor.attach(1, b"a")


def test_only_the_leader_lets_leases_run_out() -> None:
    lessor = Lessor()
    lessor.grant(1, 10, now=0.0)
    assert lessor.expired(1e9, 10) == []
    assert lessor.time_to_live(1, 1e9).remaining == 10
    with pytest.raises(errors.NotLeaderError):
        lessor.renew(1, 0.0)
    lessor.promote(100.0)
    assert lessor.promoted
    assert lessor.expired(109.9, 10) == []
    assert lessor.expired(110.0, 10) == [1]
    lessor.demote()
    assert lessor.expired(1e9, 10) == []


def test_promotion_gives_the_full_ttl_and_the_extension() -> None:
    lessor = Lessor()
    lessor.grant(1, 10)
    lessor.promote(100.0, extend=1.5)
    assert lessor.expired(111.4, 10) == []
    assert lessor.time_to_live(1, 100.0).remaining == 11
    assert lessor.expired(111.5, 10) == [1]


def test_renewal() -> None:
    lessor = Lessor()
    lessor.promote(0.0)
    lessor.grant(1, 10, now=0.0)
    lessor.grant(2, 10, now=0.0)
    assert lessor.renew(1, 5.0) == 10
    assert lessor.expired(10.0, 10) == [2]
    assert lessor.expired(15.0, 10) == [2, 1]
    with pytest.raises(errors.LeaseNotFoundError):
        lessor.renew(2, 10.0)
    assert lessor.time_to_live(1, 7.5).remaining == 7
    assert lessor.time_to_live(2, 10.5).remaining == 0


def test_expired_leases_are_named_until_they_are_revoked_oldest_first_and_not_too_many() -> None:
    lessor = Lessor()
    lessor.promote(0.0)
    for lease in range(1, 8):
        lessor.grant(lease, 20 - lease, now=0.0)
    assert lessor.leases() == [7, 6, 5, 4, 3, 2, 1]
    assert lessor.expired(100.0, 3) == [7, 6, 5]
    assert lessor.expired(100.0, 3) == [7, 6, 5]
    lessor.revoke(6)
    assert lessor.expired(100.0, 3) == [7, 5, 4]
    assert lessor.expired(14.0, 9) == [7]


def test_many_renewals_do_not_grow_the_queue_without_bound() -> None:
    lessor = Lessor()
    lessor.promote(0.0)
    for lease in range(1, 11):
        lessor.grant(lease, 10, now=0.0)
    for step in range(5000):
        lessor.renew(step % 10 + 1, step / 1000)
    assert len(lessor._heap) < 200
    assert lessor.expired(15.1, 100) == list(range(1, 11))


def test_snapshot_and_restore() -> None:
    lessor = Lessor()
    lessor.grant(9, 30)
    lessor.grant(3, 60)
    lessor.promote(0.0)
    restored = Lessor()
    restored.grant(77, 5)
    restored.restore(lessor.snapshot(), [(9, b"b"), (9, b"a"), (4, b"gone")])
    assert restored.snapshot() == lessor.snapshot() == [(3, 60), (9, 30)]
    assert restored.time_to_live(9, 0, keys=True).keys == [b"a", b"b"]
    assert not restored.promoted
    restored.promote(0.0)
    assert restored.expired(30.0, 10) == [9]


def test_against_a_dumb_twin() -> None:
    rng = random.Random(3)
    lessor, twin, now = Lessor(), {}, 0.0
    lessor.promote(now)
    for _ in range(3000):
        now += rng.random()
        lease = rng.randrange(1, 12)
        action = rng.randrange(4)
        if action == 0 and lease not in twin:
            ttl = rng.randrange(1, 20)
            lessor.grant(lease, ttl, now)
            twin[lease] = (now + ttl, ttl)
        elif action == 1 and lease in twin:
            if twin[lease][0] > now:
                assert lessor.renew(lease, now) == twin[lease][1]
                twin[lease] = (now + twin[lease][1], twin[lease][1])
            else:
                with pytest.raises(errors.LeaseNotFoundError):
                    lessor.renew(lease, now)
        elif action == 2:
            due = sorted((expiry, lease) for lease, (expiry, _) in twin.items() if expiry <= now)
            assert lessor.expired(now, 3) == [lease for _, lease in due][:3]
        elif action == 3 and lease in twin and rng.random() < 0.3:
            lessor.revoke(lease)
            del twin[lease]
        assert lessor.leases() == [lease for _, lease in sorted((e, lease) for lease, (e, _) in twin.items())]
