"""Personal data and secrets, found by pattern and replaced by the kind of what was there.

E-mail addresses, telephone numbers, payment cards (Luhn), IBANs (ISO 7064 mod 97), IP addresses, keys and
tokens. Each replacement, as `[EMAIL]`, is of no kind itself: redacting again changes nothing.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Found = Callable[[str], bool]


class Namer(Protocol):
    """What finds names of people, as the optional extra does."""

    def __call__(self, text: str) -> list[tuple[int, int]]:
        """The spans of names in a text, in order and apart."""
        ...


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def mod_97(iban: str) -> bool:
    """Whether the two digits behind the country check an IBAN (ISO 7064)."""
    turned = iban[4:] + iban[:4]
    return int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _is_card(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(digits)


def _is_iban(found: str) -> bool:
    plain = found.replace(" ", "").upper()
    return 15 <= len(plain) <= 34 and mod_97(plain)


def _is_address(found: str) -> bool:
    try:
        ipaddress.ip_address(found)
    except ValueError:
        return False
    return True


_DATE = re.compile(r"(?:\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ]\d{4})(?: |$)")

_YEAR = re.compile(r"(?:19|20)\d\d")
_NUMBER = re.compile(r"\d{1,3}(?:\.\d{3})+|\d+\.\d+|\d{1,3}(?:\.\d{1,3}){3}")


def _is_phone(found: str) -> bool:
    digits = re.sub(r"\D", "", found)
    if not 7 <= len(digits) <= 15 or _DATE.match(found):
        return False
    if found.startswith("+"):
        return True
    groups = re.findall(r"\d+", found)
    if len(groups) == 1:
        return len(digits) in (10, 11)
    if all(_YEAR.fullmatch(group) for group in groups) or _NUMBER.fullmatch(found):
        return False
    return len(groups[-1]) >= 3


_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\b(?:ghp|gho|ghu|ghs|ghr|glpat|github_pat)[_-][A-Za-z0-9_-]{20,}"
    r"|\b(?:sk|pk|rk)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9]{16,}"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[0-9A-Za-z_-]{35}\b"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|(?i:\b(?:api[_-]?key|secret|token|passw(?:or)?d)\b\s*[:=]\s*[\"']?)(?!\[KEY\])[^\s\"']{8,}",
    re.DOTALL,
)
_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@[A-Za-z0-9](?:[A-Za-z0-9-]*\.)+[A-Za-z]{2,}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d])")
_IPV4 = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_PHONE = re.compile(r"(?<![\w.+])(?<!\d[ -])(?:\+|\()?\d(?:[ ().-]{0,2}\d){6,14}(?!\w|[ .-]\d)")
_LEAST_DIGITS = 7
"""Of a telephone number; a card has more."""

_SEVEN_DIGITS = re.compile(r"\d(?:[ ().-]{0,2}\d){6}")

KINDS = ("KEY", "EMAIL", "IBAN", "CARD", "IP", "PHONE", "NAME")
_CHECKED: tuple[tuple[str, re.Pattern[str], Found], ...] = (
    ("IBAN", _IBAN, _is_iban),
    ("CARD", _CARD, _is_card),
    ("IP", _IPV4, _is_address),
    ("PHONE", _PHONE, _is_phone),
)
_LABELLED = re.compile(r"::|:\s*\S{8}")
_SHORT = re.compile(r"\d\.\d{1,3}\.|[A-Z]{2}\d\d")
"""What an address or an IBAN of few digits holds."""

_PRIVATE = "PRIVATE KEY"
_PREFIXES = (
    _PRIVATE,
    "eyJ",
    "sk-",
    "sk_",
    "pk-",
    "pk_",
    "rk-",
    "rk_",
    "gh",
    "glpat",
    "xox",
    "AKIA",
    "ASIA",
    "AIza",
)
_RUN = 15
"""Characters without a blank that a key without a label has at least."""

_DIGIT, _COLON, _SIGN = 1, 2, 3


def _kinds() -> NDArray[np.uint8]:
    kinds = np.zeros(256, np.uint8)
    kinds[ord("0") : ord("9") + 1] = _DIGIT
    kinds[ord(":")] = _COLON
    kinds[[ord("@"), ord("=")]] = _SIGN
    return kinds


_KINDS = _kinds()


def suspect(text: str) -> bool:
    """Whether a text may hold anything that is redacted; False is certain."""
    return bool(suspects([text]))


def suspects(texts: Sequence[str]) -> list[int]:
    """The places of the texts that may hold anything that is redacted, in order.

    Looked for in all of them at once, by what none of it is without: the sign of an address or of a label, so
    many digits, so many characters without a blank.
    """
    encoded = [text.encode() for text in texts]
    # Each text begins behind a blank, and the last one ends before one.
    joined = b"\n".join([b"", *encoded, b""])
    blob = np.frombuffer(joined, np.uint8)
    ends = np.cumsum([len(text) + 1 for text in encoded])
    kinds = _KINDS[blob]
    met = np.flatnonzero(kinds)
    kinds, owners = kinds[met], np.searchsorted(ends, met)
    digits = np.bincount(owners[kinds == _DIGIT], minlength=len(texts))
    sure = digits >= _LEAST_DIGITS
    sure[owners[kinds == _SIGN]] = True
    blanks = np.flatnonzero(blob <= ord(" "))
    sure[np.searchsorted(ends, blanks[:-1][np.diff(blanks) > _RUN] + 1)] = True
    if _PRIVATE.encode() in joined:
        sure |= [_PRIVATE in text for text in texts]
    labelled = np.zeros(len(texts), bool)
    labelled[owners[kinds == _COLON]] = True
    return [
        place
        for place in np.flatnonzero(sure | labelled | (digits > 1)).tolist()
        if sure[place]
        or (labelled[place] and _LABELLED.search(texts[place]))
        or (digits[place] > 1 and _SHORT.search(texts[place]))
    ]


def redact(text: str) -> str:
    """Replace what is found."""
    if ":" in text or "=" in text or any(prefix in text for prefix in _PREFIXES):
        text = _replaced(_KEY, "KEY", text)
    if "@" in text:
        text = _replaced(_EMAIL, "EMAIL", text)
    if _SEVEN_DIGITS.search(text) or text.count(".") > 2:
        for kind, pattern, holds in _CHECKED:
            text = _replaced(pattern, kind, text, holds)
    if text.count(":") > 1:
        text = _replaced(_IPV6, "IP", text, _is_address)
    return text


def redact_names(text: str, namer: Namer) -> str:
    """Replace the names that the extra finds."""
    for start, end in reversed(namer(text)):
        text = f"{text[:start]}[NAME]{text[end:]}"
    return text


def placeholders(text: str) -> Counter[str]:
    """How often each kind stands in a text."""
    if "[" not in text:
        return Counter()
    return Counter({kind: count for kind in KINDS if (count := text.count(f"[{kind}]"))})


def _replaced(pattern: re.Pattern[str], kind: str, text: str, holds: Found | None = None) -> str:
    if holds is None:
        return pattern.sub(f"[{kind}]", text)
    return pattern.sub(lambda match: f"[{kind}]" if holds(match.group()) else match.group(), text)
