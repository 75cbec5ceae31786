"""Progress of long work: a bar on a terminal, a plain line now and then in a log."""

import sys
import time

from stagecraft.runtime.processes import is_main


class Progress:
    """Reports `done` of `total` with the rate and the time left; one line in `every` seconds, and one at the end, when not
    on a terminal. Of several processes, rank 0 reports.

    Args:
        label: what is being done.
        total: how many steps in all.
        start: steps already done before this process (a resumed run), left out of the rate.
    """

    def __init__(self, label: str, total: int, start: int = 0, every: float = 10.0) -> None:
        from tqdm import tqdm

        self.label = label
        self.total = total
        self.first = start
        self.every = every
        self.begun = self.last = time.monotonic()
        on_terminal = sys.stderr.isatty() and is_main()
        self.bar = tqdm(total=total, initial=start, desc=label, leave=False) if on_terminal else None

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` steps are finished."""
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
            if done >= self.total:
                self.bar.close()
            return
        now = time.monotonic()
        if is_main() and (now - self.last >= self.every or done >= self.total):
            self.last = now
            rate = (done - self.first) / max(now - self.begun, 1e-3)
            left = (self.total - done) / rate if rate else 0
            print(
                f"{self.label}: {done}/{self.total} {note} {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True
            )
