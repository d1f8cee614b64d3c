"""Around a run: signals."""

import signal


class StopSignals:
    """Ctrl-C, SIGTERM and SIGHUP, as KeyboardInterrupt with the signal's number; but inside the training loop, which
    sets `in_loop`, the first one only asks the loop to stop after its step, so that the run is saved. Where nobody
    catches the KeyboardInterrupt, it ends the `with` block and goes no further."""

    def __enter__(self) -> "StopSignals":
        self.requested, self.in_loop, self.earlier = 0, False, {}
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                self.earlier.setdefault(number, signal.signal(number, self.receive))
        return self

    def receive(self, number: int, _) -> None:
        first, self.requested = self.requested != number, number
        if not (self.in_loop and first):
            raise KeyboardInterrupt(number)

    def __exit__(self, kind: type | None, *_) -> bool:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        return kind is KeyboardInterrupt
