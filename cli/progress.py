"""Progress bars on standard error, for work that takes more than a few seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.termination import raise_if_asked


@contextlib.contextmanager
def round_progress(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar of `total` rounds or steps; yields a function of how many are done and a line of figures.

    Where standard error is no terminal, each call prints a line instead, so that logs show progress too.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _step(lambda done, figures: console.print(f"{title} {done}/{total}  {figures}", highlight=False))
        return
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, figures="")
        yield _step(lambda done, figures: bar.update(task, completed=done, figures=figures))


def _step(show: Callable[[int, str], None]) -> Callable[[int, str], None]:
    def show_and_go_on(done: int, figures: str) -> None:
        show(done, figures)
        raise_if_asked()

    return show_and_go_on
