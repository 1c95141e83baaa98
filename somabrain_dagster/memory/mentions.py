"""Whether a question names somebody or something."""

import re
from collections.abc import Iterable


class Mentions:
    """The names that a question has in it, as whole words and whatever their case."""

    def __init__(self, question: str) -> None:
        self._question = question.casefold()
        self._known: dict[str, bool] = {}

    def any(self, names: Iterable[str | None]) -> bool:
        """Whether one of these names is in the question."""
        return any(name is not None and self._has(name) for name in names)

    def _has(self, name: str) -> bool:
        if name not in self._known:
            folded = name.casefold().strip()
            pattern = rf"(?<!\w){re.escape(folded)}(?!\w)"
            self._known[name] = bool(folded) and re.search(pattern, self._question) is not None
        return self._known[name]
