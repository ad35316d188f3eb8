"""Makes the models in the box: `python -m training all` redoes everything; each step can be run alone.

python -m training tokenizer | train tiny | train tiny-draft | export tiny | gates tiny | all
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer

from headrace.box import library
from training import card, export, gates, loop, probe, tokens
from training.mixture import build_corpus
from training.model import Llama
from training.recipe import RECIPES

HERE = Path(__file__).parent
BOX = HERE.parent / "headrace" / "box"


def say(line: str) -> None:
    print(line, flush=True)


def tokenizer_step(state: Path) -> Tokenizer:
    """Train the tokenizer and write the held-out text; both are kept once they exist."""
    path = state / "tokenizer.json"
    if not path.exists():
        tokens.train_tokenizer(library.training_texts(), path)
        (BOX / "heldout.txt").write_text(library.held_out_text(), encoding="utf-8")
        say(f"tokenizer: {path}")
    return Tokenizer.from_file(str(path))


def train_step(state: Path, name: str, until: int | None, workers: int) -> None:
    recipe, tokenizer = RECIPES[name], tokenizer_step(state)
    text = build_corpus(tokenizer, library.training_texts())
    say(f"{name}: corpus {len(text.ids)} tokens, recipe {recipe.tokens} tokens")
    held_out = (BOX / "heldout.txt").read_text(encoding="utf-8")
    teacher = load_model(state, recipe.teacher) if recipe.teacher else None
    run = loop.Run(
        recipe, tokenizer, text, state / name, probe.make_probe(held_out), teacher, workers=workers
    )
    for line in run.lines(until):
        say(line)


def load_model(state: Path, name: str) -> Llama:
    """The model of a run, from its state."""
    model = Llama(RECIPES[name].shape)
    model.load_state_dict(loop.load_file(state / name / "model.safetensors"))
    return model.eval()


def export_step(state: Path, name: str) -> None:
    export.write(load_model(state, name), state / "tokenizer.json", BOX / name)
    say(f"{name}: written to {BOX / name}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("step", choices=("tokenizer", "train", "export", "gates", "all"))
    parser.add_argument("model", nargs="?", choices=tuple(RECIPES))
    parser.add_argument("--state", type=Path, default=HERE / "state", help="where checkpoints are kept")
    parser.add_argument("--until", type=int, help="stop after this many tokens")
    parser.add_argument("--workers", type=int, default=2, help="micro-batches at a time, one core each")
    options = parser.parse_args(arguments)
    names = [options.model] if options.model else list(RECIPES)
    tokenizer_step(options.state)
    for name in names:
        if options.step in ("train", "all"):
            train_step(options.state, name, options.until, options.workers)
        if options.step in ("export", "all"):
            export_step(options.state, name)
        if options.step in ("gates", "all"):
            progress = json.loads((options.state / name / "progress.json").read_text())
            for line in gates.measure(name, BOX, progress["tokens"], progress["seconds"]):
                say(line)
            card.write(BOX / name, library.HELD_OUT)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
