"""The listener creates the pool when a scheduler starts."""

from collections.abc import Iterator

import pytest
from airflow.jobs.job import Job
from airflow.models.pool import Pool
from airflow.utils.session import create_session
from sqlalchemy import delete

from include.log_rollup.streams import POOL, pool_slots
from log_rollup_plugin.listener import on_starting


@pytest.fixture
def no_pool(database: None) -> Iterator[None]:
    """Remove the pool before and after the test."""

    def remove() -> None:
        with create_session() as session:
            session.execute(delete(Pool).where(Pool.pool == POOL))

    remove()
    yield
    remove()


def slots() -> int | None:
    with create_session() as session:
        pool = Pool.get_pool(POOL, session=session)
        return pool.slots if pool else None


def test_scheduler_start_creates_pool_but_keeps_its_size(no_pool: None) -> None:
    on_starting(component=Job())
    assert slots() == pool_slots() == 250
    with create_session() as session:
        Pool.get_pool(POOL, session=session).slots = 40
    on_starting(component=Job())
    assert slots() == 40


def test_task_start_does_not_touch_the_database(no_pool: None) -> None:
    on_starting(component=object())
    assert slots() is None
