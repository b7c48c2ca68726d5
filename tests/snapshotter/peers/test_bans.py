from snapshotter.blob.peers.bans import Bans


def test_who_lies_is_left_alone_for_long_and_who_fails_for_a_while():
    bans = Bans()
    bans.lied("liar", now=0)
    bans.failed("slow", now=0)

    assert bans.is_banned("liar", 599) and not bans.is_banned("liar", 600)
    assert bans.is_banned("slow", 0.9) and not bans.is_banned("slow", 1)
    assert not bans.is_banned("other", 0)


def test_failures_in_a_row_are_left_alone_for_longer_until_one_answers():
    bans = Bans()
    for now in (0, 10, 20):
        bans.failed("slow", now)
    assert bans.is_banned("slow", 23.9) and not bans.is_banned("slow", 24)

    bans.answered("slow")
    bans.failed("slow", 100)
    assert not bans.is_banned("slow", 101)


def test_a_failure_does_not_shorten_the_ban_of_a_liar():
    bans = Bans()
    bans.lied("liar", now=0)
    bans.failed("liar", now=1)
    assert bans.is_banned("liar", 500)


def test_a_liar_that_left_the_directory_is_remembered_while_it_is_banned():
    bans = Bans()
    bans.lied("liar", now=0)
    bans.failed("slow", now=0)

    bans.forget_but(set(), now=10)
    assert bans.is_banned("liar", 11)
    bans.failed("slow", now=10)
    assert not bans.is_banned("slow", 11), "its first failure again"
