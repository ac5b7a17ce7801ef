"""Ids are the ones that genuine etcd computes from the same flags."""

from __future__ import annotations

from kvserver.node.membership import Member, Membership, cluster_id_of, member_id_of


def test_ids_of_etcds_default_flags() -> None:
    member_id = member_id_of(["http://localhost:2380"], "etcd-cluster")
    assert f"{member_id:x}" == "8e9e05c52164694d"
    assert f"{cluster_id_of([member_id]):x}" == "cdf818194e3a8c32"


def test_ids_do_not_depend_on_order() -> None:
    urls = ["http://10.0.0.2:2380", "http://10.0.0.1:2380"]
    assert member_id_of(urls, "t") == member_id_of(reversed(urls), "t")
    assert cluster_id_of([3, 1, 2]) == cluster_id_of([1, 2, 3])


def test_publishing_a_member_that_was_removed_changes_nothing() -> None:
    membership = Membership()
    membership.publish(5, "late", ["http://127.0.0.1:2379"])
    assert membership.members() == []


def test_members_are_listed_by_id_and_survive_the_protocols_form() -> None:
    membership = Membership()
    membership.add(Member(9, ("http://127.0.0.1:9",)))
    membership.add(Member(3, ("http://127.0.0.1:3",), is_learner=True))
    membership.publish(9, "nine", ["http://127.0.0.1:99"])
    assert [member.member_id for member in membership.members()] == [3, 9]
    assert [Member.from_message(member.message()) for member in membership.members()] == membership.members()
    assert membership.members()[1].name == "nine"
