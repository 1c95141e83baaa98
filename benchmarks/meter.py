"""How much of the processor processes took."""

import psutil


class Meter:
    """The processor's time of some processes, all that they start included."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._began = self._read()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return self._read() - self._began

    def _read(self) -> float:
        found = {}
        for pid in self._pids:
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                try:
                    found[one.pid] = sum(one.cpu_times()[:4])
                except psutil.NoSuchProcess:
                    continue
        return sum(found.values())
