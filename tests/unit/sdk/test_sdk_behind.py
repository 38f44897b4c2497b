"""Work that is done behind whoever hands it over: in order, not too far behind, and never lost."""

import threading

import pytest
from rm_abstract.store.behind import Behind


def test_it_is_done_in_order_and_all_of_it() -> None:
    done: list[int] = []
    with Behind("test", most=3) as behind:
        for number in range(100):
            behind.do(done.append, number)
        behind.finish()
        assert done == list(range(100))
        behind.do(done.append, 100)
        behind.finish()
    assert done[-1] == 100


def test_whoever_is_too_far_ahead_waits() -> None:
    go, handed = threading.Event(), threading.Semaphore(0)

    def hand_over() -> None:
        with Behind("test", most=2) as behind:
            for _ in range(4):
                behind.do(go.wait, 30)
                handed.release()
            behind.finish()

    thread = threading.Thread(target=hand_over)
    thread.start()
    assert [handed.acquire(timeout=30) for _ in range(2)] == [True, True]
    assert not handed.acquire(timeout=0.2)
    go.set()
    assert [handed.acquire(timeout=30) for _ in range(2)] == [True, True]
    thread.join()


@pytest.mark.parametrize("further", [0, 1, 50])
def test_what_goes_wrong_is_raised_and_what_waits_is_not_done(further: int) -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("the disk is gone")

    def hand_over() -> None:
        with Behind("test", most=4) as behind:
            behind.do(fail)
            for number in range(further):
                behind.do(done.append, number)
            behind.finish()

    with pytest.raises(OSError, match="the disk is gone"):
        hand_over()
    assert done == list(range(len(done)))
    assert len(done) <= 4


def test_an_error_of_the_caller_ends_it_too() -> None:
    before = threading.active_count()

    def hand_over() -> None:
        with Behind("test") as behind:
            behind.do(len, "")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        hand_over()
    assert threading.active_count() == before
