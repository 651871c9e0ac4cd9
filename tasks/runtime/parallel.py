"""Work of many threads whose results come in order, with few of them waiting in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # calls begun or finished for each worker before the first of them is taken


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    ahead: int = AHEAD,
) -> Iterator[Result]:
    """Call a function on every item in `workers` threads and yield the results in items' order.

    At most `ahead` calls a worker are begun before their turn, so that memory does not grow with
    the number of items. An exception of a call is raised at its turn; calls not yet begun are
    dropped.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
