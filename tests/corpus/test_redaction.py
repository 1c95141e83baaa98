"""Personal data and secrets leave a text, and nothing else does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from somabrain_dagster.corpus.redaction import luhn, mod_97, placeholders, redact, suspect, suspects
from tests.corpus.records import conversations

PLANTED = {
    "write to ada.lovelace+work@mail.example.org today": "write to [EMAIL] today",
    "call +44 20 7946 0958 now": "call [PHONE] now",
    "call (555) 010-4477.": "call [PHONE].",
    "call 555-010-4477 or 5550104477": "call [PHONE] or [PHONE]",
    "my card is 4111 1111 1111 1111, ok?": "my card is [CARD], ok?",
    "my card is 378282246310005": "my card is [CARD]",
    "pay to DE89 3704 0044 0532 0130 00 please": "pay to [IBAN] please",
    "pay to GB82WEST12345698765432": "pay to [IBAN]",
    "the host is 192.168.10.254.": "the host is [IP].",
    "the host is 2001:db8::ff00:42:8329": "the host is [IP]",
    "AKIAIOSFODNN7EXAMPLE is mine": "[KEY] is mine",
    "use ghp_16C7e42F292c6912E7710c838347Ae178B4a": "use [KEY]",
    "api_key = abcdef0123456789": "[KEY]",
    "sk-proj-abcdefghijklmnopqrstuvwx": "[KEY]",
    "AIzaSyDabcdefghijklmnopqrstuvwxyzabcdef": "[KEY]",
    "password:   correcthorsebatterystaple": "[KEY]",
    "dns is 1.1.1.1": "dns is [IP]",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----": "[KEY]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P": "[KEY]",
}
HARMLESS = [
    "on 2018-04-13 at 17:26 we met",
    "between 2016 2017 2018",
    "it cost 1.000.000 or 3.14159265",
    "order 12345678",
    "4111 1111 1111 1112 is no card",
    "version 1.2.3 and 10.0.0.300",
    "the score was 3-2, then 11:45:12",
    "@home, me@ and a@b",
    "a token of love: thanks",
]


@pytest.mark.parametrize(("text", "expected"), PLANTED.items())
def test_what_is_planted_is_replaced_by_its_kind(text: str, expected: str) -> None:
    assert suspect(text)
    assert redact(text) == expected


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text(alphabet="0123456789abcdeE@.:-+() [KYPHON]=/", max_size=80))
def test_redacting_again_changes_nothing(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(st.text(alphabet="0123456789abcdefAKIAskghp_@.:-+() =\n\té", max_size=80))
def test_what_is_not_suspect_is_not_changed(text: str) -> None:
    if not suspect(text):
        assert redact(text) == text


@given(st.lists(st.text(alphabet="019abAKIskgh_@.:-x =yJ", max_size=40), max_size=5))
def test_texts_together_are_suspect_as_they_are_alone(texts: list[str]) -> None:
    assert suspects(texts) == [place for place, text in enumerate(texts) if suspect(text)]


def test_real_conversations_lose_little() -> None:
    """People do write addresses and numbers: few, and nothing like every message."""
    texts = [message.text for one in conversations() for message in one.messages]
    changed = [text for text in texts if redact(text) != text]
    assert len(changed) < len(texts) / 1000


def test_check_digits() -> None:
    assert luhn("79927398713")
    assert not luhn("79927398710")
    assert mod_97("GB82WEST12345698765432")
    assert not mod_97("GB83WEST12345698765432")


def test_placeholders_are_counted() -> None:
    assert placeholders(redact("a@example.org, b@example.org, 192.0.2.1")) == {"EMAIL": 2, "IP": 1}
