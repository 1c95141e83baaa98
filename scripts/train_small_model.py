"""Train a model of two layers on nanoGPT's files, on the CPU, for some steps, and say whether the loss falls.

    python scripts/train_small_model.py FOLDER --steps 200

Prints a JSON object; exit 1 if the loss does not fall, 3 if torch is not installed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

BLOCK, BATCH, WIDTH, HEADS, LAYERS = 64, 16, 64, 4, 2
VOCABULARY = 50257
SEED = 1337


def main() -> int:
    """Train, and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with train.bin and val.bin")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        missing = "torch is not installed, nothing was trained: pip install 'somabrain-dagster[torch]'"
        print(missing, file=sys.stderr)
        return 3
    train, held_out = (np.fromfile(arguments.folder / f"{name}.bin", np.uint16) for name in ("train", "val"))
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    model = small_model(torch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    chosen = np.random.default_rng(SEED)
    before = judged(torch, model, held_out)
    losses = []
    for _ in range(arguments.steps):
        starts = chosen.integers(0, len(train) - BLOCK - 1, BATCH)
        loss = loss_of(torch, model, train, starts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = judged(torch, model, held_out)
    tenth = max(1, len(losses) // 10)
    first, last = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
    fell = last < first and after < before
    print(
        json.dumps(
            {
                "steps": len(losses),
                "loss, first tenth": round(first, 4),
                "loss, last tenth": round(last, 4),
                "held out before": round(before, 4),
                "held out after": round(after, 4),
                "fell": fell,
                "torch": torch.__version__,
            }
        )
    )
    return int(not fell)


def small_model(torch: Any) -> Any:
    """Token and place embeddings, two layers of causal attention, and the embeddings again to read it off."""
    nn = torch.nn

    class Small(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(VOCABULARY, WIDTH)
            nn.init.normal_(self.words.weight, std=0.02)
            self.places = nn.Parameter(torch.zeros(BLOCK, WIDTH))
            layer = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(
                layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False
            )
            self.mask = nn.Transformer.generate_square_subsequent_mask(BLOCK)

        def forward(self, tokens: Any) -> Any:
            hidden = self.layers(self.words(tokens) + self.places, mask=self.mask, is_causal=True)
            return hidden @ self.words.weight.T

    return Small()


def loss_of(torch: Any, model: Any, tokens: Any, starts: Any) -> Any:
    """The mean cross-entropy of the next token, in nats."""
    cut = np.stack([tokens[start : start + BLOCK + 1] for start in starts])
    blocks = torch.from_numpy(cut.astype(np.int64))
    scores = model(blocks[:, :-1])
    return torch.nn.functional.cross_entropy(scores.reshape(-1, VOCABULARY), blocks[:, 1:].reshape(-1))


def judged(torch: Any, model: Any, tokens: Any) -> float:
    """The loss on blocks of the held-out tokens, the same ones each time."""
    starts = np.linspace(0, len(tokens) - BLOCK - 2, 4 * BATCH).astype(int)
    with torch.no_grad():
        loss: float = loss_of(torch, model, tokens, starts).item()
    return loss


if __name__ == "__main__":
    sys.exit(main())
