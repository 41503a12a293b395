"""The outbox and the inbox, on both databases, without a broker."""

from __future__ import annotations

import datetime
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from chassis import context, inbox, outbox
from chassis import tables as frame
from chassis.database import Database
from contracts import errors
from tests.fakes.services import promises


@pytest.fixture
def store(database: Database) -> Database:
    with database.write() as session:
        frame.frame.create_all(session.connection())
    return database


def tell(store: Database, *numbers: int) -> None:
    with store.write() as session:
        for number in numbers:
            outbox.tell(session, promises.said, {"text": "x", "number": number})


def rows(store: Database) -> list[Any]:
    with store.read() as session:
        return list(session.execute(sa.select(frame.outbox).order_by(frame.outbox.c.id)))


class Broker:
    """Where rows arrive; it can be away."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.away = False

    def send(self, batch: list[Any]) -> None:
        if self.away:
            raise ConnectionRefusedError
        self.got += [row.body["number"] for row in batch]


def test_rows_leave_in_order_and_are_gone_afterwards(store: Database) -> None:
    broker = Broker()
    tell(store, 1, 2, 3)
    tell(store, 4)
    publisher = outbox.Publisher(store, broker.send, threading.Event())
    assert publisher.publish_some() == 4
    publisher.stop()
    assert broker.got == [1, 2, 3, 4]
    assert rows(store) == []


def test_rows_stay_while_the_broker_is_away_and_their_age_shows(store: Database) -> None:
    broker = Broker()
    broker.away = True
    publisher = outbox.Publisher(store, broker.send, threading.Event())
    tell(store, 1)
    with pytest.raises(ConnectionRefusedError):
        publisher.publish_some()
    publisher.stop()
    assert len(rows(store)) == 1
    assert publisher.age() > 0


def test_a_commit_with_news_wakes_the_publisher_and_others_do_not(store: Database) -> None:
    wake = threading.Event()
    publisher = outbox.Publisher(store, Broker().send, wake)
    with store.write() as session:
        session.execute(sa.text("SELECT 1"))
    assert not wake.is_set()
    tell(store, 1)
    assert wake.is_set()
    publisher.stop()


def test_a_rolled_back_change_tells_nothing(store: Database) -> None:
    with store.write() as session:
        outbox.tell(session, promises.said, {"text": "x", "number": 1})
        session.rollback()
    assert rows(store) == []


def test_news_that_break_their_promise_are_refused_where_they_are_told(store: Database) -> None:
    with pytest.raises(errors.BadRequest), store.write() as session:
        outbox.tell(session, promises.said, {"text": "x"})
    assert rows(store) == []


def test_news_carry_who_caused_them_but_no_deadline(store: Database) -> None:
    with context.use(context.Call("r1", "f1", "ann", deadline=1.0)):
        tell(store, 1)
    assert rows(store)[0].headers == {
        "x-drystone-request": "r1",
        "x-drystone-flow": "f1",
        "x-drystone-user": "ann",
    }


def test_rows_of_a_living_instance_are_left_to_it_and_old_ones_are_taken_over(store: Database) -> None:
    broker = Broker()
    publisher = outbox.Publisher(store, broker.send, threading.Event())
    tell(store, 1, 2)
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=60)
    with store.write() as session:
        session.execute(frame.outbox.update().values(writer="another:1"))
    assert publisher.publish_some() == 0
    with store.write() as session:
        session.execute(frame.outbox.update().where(frame.outbox.c.id == rows(store)[0].id).values(told_at=old))
    assert publisher.publish_some() == 1
    publisher.stop()
    assert broker.got == [1]


def test_a_message_is_handled_once(store: Database) -> None:
    handled: list[int] = []
    answers = []
    for _ in range(3):
        with store.write() as session:
            answers.append(inbox.once(session, "m1", lambda: handled.append(1)))
    assert answers == [True, False, False]
    assert handled == [1]


def test_a_message_whose_handler_fails_counts_as_not_handled(store: Database) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), store.write() as session:
        inbox.once(session, "m1", fail)
    with store.write() as session:
        assert inbox.once(session, "m1", lambda: None)


def test_of_two_instances_with_one_message_only_one_handles_it(store: Database, url: str) -> None:
    handled: list[int] = []
    both = threading.Barrier(2)

    def instance() -> None:
        database = Database(url)
        both.wait(60)
        with database.write() as session:
            inbox.once(session, "m1", lambda: handled.append(1))
        database.close()

    threads = [threading.Thread(target=instance) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert handled == [1]
