"""kvquant: what it stores is the closest number of a codebook; keys are rounded before rotation; files are checked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from headrace import cli
from headrace.architecture import Architecture
from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.kv import codebooks
from headrace.kv.codecs import SLOT
from headrace.kv.groups import GroupSpec, Member
from headrace.kv.unrotated import rotaries
from headrace.layer.positions import SLOT as POSITIONS
from headrace.params import SamplingParams
from headrace.types import Batch, Request
from tests.models.dense_kv import DenseKV, batch_of
from tests.whole import models
from tests.whole.drive import Ask, Fork, collect, nothing_left
from tests.whole.test_schedules import run_schedule, schedules

GROUP = GroupSpec("g", (Member(0, (0, 1), 64), Member(1, (1,), 12)))
SHAPES = ((2, 64), (2, 12))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(bits: int = 3) -> Any:
    return SLOT.make(f"kvquant:codebooks={models.books(SHAPES)},bits={bits}")


def closest(unit: Tensor, book: list[float]) -> Tensor:
    """Each number's nearest in the book, by trying all."""
    table_C = torch.tensor(book)
    return table_C[(unit[..., None] - table_C).abs().argmin(-1)]


def rounded(k: Tensor, v: Tensor, bits: int, books: codebooks.LayerCodes) -> tuple[Tensor, Tensor]:
    """What is to be read after keys (not rotated) and values were written."""
    low, high = torch.tensor(books.low), torch.tensor(books.high)
    unit = ((k.float() - low) / (high - low) * 2 - 1).clamp(-1, 1)
    k_read = low + (closest(unit, books.keys[str(bits)]) + 1) / 2 * (high - low)
    least, most = (
        x.bfloat16().float() for x in (v.float().amin(-1, keepdim=True), v.float().amax(-1, keepdim=True))
    )
    unit = ((v.float() - least) / (most - least) * 2 - 1).clamp(-1, 1)
    return k_read, least + (closest(unit, books.values[str(bits)]) + 1) / 2 * (most - least)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_read_is_the_closest_number_of_the_codebook(bits: int) -> None:
    codec = make(bits)
    live = codec.start(GROUP, 8, torch.float32)
    arena = torch.full((3, codec.page_bytes(GROUP, 8, torch.float32)), 0xFF, dtype=torch.uint8)
    books = codebooks.read(str(models.books(SHAPES)))
    for member in GROUP.members:
        k, v = (draw(8, len(member.kv_heads), member.head_size, seed=seed) for seed in (1, 2))
        live.write(arena, member.layer, k, v, torch.arange(8, 16))
        got = live.read(arena, member.layer, torch.tensor([1]), 8)
        layer = books.layers[member.layer]
        cut = codebooks.LayerCodes(
            *([x[h] for h in member.kv_heads] for x in (layer.low, layer.high)), layer.keys, layer.values
        )
        for read, wanted in zip(got, rounded(k, v, bits, cut), strict=True):
            torch.testing.assert_close(read, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("size", [4, 12, 64])
def test_codes_come_back_from_their_planes(bits: int, size: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, 2, size), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    packed = codebooks.pack(codes, bits)
    assert packed.shape[-1] == bits * -(-size // 8)
    assert torch.equal(codebooks.unpack(packed, bits, size), codes.long())


@pytest.mark.parametrize(("bits", "wanted"), [(4, 4.125), (3, 3.125), (2, 2.125)])
def test_bits_per_number(bits: int, wanted: float) -> None:
    """Codes, and for a token's values of a head two ends of 16 bits."""
    group = GroupSpec("g", (Member(0, (0, 1), 128),))
    assert make(bits).page_bytes(group, 16, torch.float32) * 8 / (16 * group.elements_per_token) == wanted


def test_a_codebook_is_where_the_numbers_are() -> None:
    centres = torch.tensor([-0.9, -0.1, 0.0, 0.7], dtype=torch.float64)
    sample = (centres[:, None] + 0.02 * draw(4, 500).double()).flatten()
    torch.testing.assert_close(codebooks.k_means(sample, 4), centres, atol=0.01, rtol=0)
    bell = codebooks.to_unit(draw(4000), torch.tensor(-4.0), torch.tensor(4.0)).double()
    book, even = codebooks.k_means(bell, 8), (torch.arange(8).double() * 2 + 1) / 8 - 1
    errors = [float((b[codebooks.encode(bell, b).long()] - bell).norm()) for b in (book, even)]
    assert errors[0] < 0.75 * errors[1], "codes that are spread evenly do as well"
    assert book.tolist() == sorted(book.tolist()) and len(codebooks.k_means(torch.zeros(5), 16)) == 16


@pytest.mark.parametrize("spec", ["rope", "linear:factor=2", "yarn:factor=4,original_context=32"])
def test_a_rotation_is_undone(spec: str) -> None:
    live = POSITIONS.make(spec).start(16, 10_000.0, 128, "cpu", torch.float64)
    x, positions = draw(9, 3, 16).double(), torch.arange(90, 99)
    back = live.undo(live.rotate(x, positions), positions)
    torch.testing.assert_close(back, x, atol=1e-12, rtol=0)


def test_keys_lose_less_before_they_are_rotated() -> None:
    """Where channels keep to ranges of their own, as those of models do."""
    architecture: Architecture = models.decoder("full").architecture
    turn = rotaries(architecture, torch.device("cpu"), torch.float32)[0]
    channels = torch.tensor([8.0, -5.0, 0.0, 3.0])
    before = channels + 0.5 * draw(90, 2, 4)
    after = turn.rotate(before, torch.arange(90))
    errors = []
    for k in (before, after):
        low, high = k.amin(0), k.amax(0)
        unit = codebooks.to_unit(k, low, high)
        book = codebooks.k_means(unit, 8).float()
        errors.append(
            float((codebooks.from_unit(book[codebooks.encode(unit, book).long()], low, high) - k).norm())
        )
    assert errors[0] < 0.4 * errors[1]


class Rounded(DenseKV):
    """One text, whose keys and values are rounded as kvquant does."""

    def __init__(self, architecture: Architecture, bits: int) -> None:
        super().__init__(architecture)
        self._turns = rotaries(architecture, torch.device("cpu"), torch.float64)
        self._bits, self._books = bits, codebooks.read(str(models.books()))

    def attend(self, layer: int, q_TNH: Tensor, k_TGH: Tensor, v_TGH: Tensor, batch: Batch) -> Tensor:
        positions_T = batch.positions_T
        before = self._turns[layer].undo(k_TGH, positions_T)
        k, v = (x.double() for x in rounded(before, v_TGH, self._bits, self._books.layers[layer]))
        return super().attend(layer, q_TNH, self._turns[layer].rotate(k, positions_T), v, batch)


def test_tokens_are_those_of_the_formula() -> None:
    decoder, prompt = models.decoder("full"), [i * i % models.VOCAB for i in range(30)]
    stack = {"kv-codec": models.with_file("kvquant:bits=4")}
    made = Engine(EngineConfig(stack=stack, page_tokens=4, threads=1), decoder=decoder, poison=True)
    made.add(
        Request(
            id="r", prompt=tuple(prompt), params=SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        )
    )
    got = collect(made)["r", 0]
    nothing_left(made)
    tokens = list(prompt)
    for _ in got:
        with torch.inference_mode():
            hidden = decoder.forward(batch_of(tokens), Rounded(decoder.architecture, 4))
            tokens.append(int(decoder.logits(hidden[-1:]).argmax()))
    assert got == tokens[len(prompt) :]


def test_tokens_do_not_depend_on_the_schedule() -> None:
    happened: Counter[str] = Counter()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(schedules(("kvquant", "razor_kvquant")))
    def check(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
        happened["prefix hits"] += run_schedule(schedule).counters.cached_tokens > 0

    check()
    assert happened["prefix hits"] >= 2


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedules(("kvquant", "razor_kvquant")))
def test_at_length(schedule: tuple[str, EngineConfig, list[Ask], list[Fork]]) -> None:
    run_schedule(schedule)


def test_what_is_not_finite_does_not_look_as_if_it_were() -> None:
    codec = make()
    live = codec.start(GROUP, 8, torch.float32)
    for where, fault in ((0, torch.nan), (1, torch.inf), (0, -torch.inf)):
        arena = torch.zeros((1, codec.page_bytes(GROUP, 8, torch.float32)), dtype=torch.uint8)
        pair = [draw(2, 2, 64, seed=seed) for seed in (3, 4)]
        pair[where][0, 1, 5] = fault
        live.write(arena, 0, *pair, torch.tensor([0, 1]))
        _, v = live.read(arena, 0, torch.tensor([0]), 2)
        assert bool(v[0, 1].isnan().all()) and bool(v[0, 0].isfinite().all()) and bool(v[1].isfinite().all())


def test_memory_is_really_saved() -> None:
    held = {}
    for codec in ("bf16", "kvquant:bits=2"):
        config = EngineConfig(stack={"kv-codec": models.with_file(codec)}, page_tokens=16, threads=1)
        made = Engine(config, decoder=models.decoder("full"), poison=True)
        held[codec] = made.kv.bytes_per_token()
    assert held["kvquant:bits=2"] == 0.5 * held["bf16"], (
        "heads of 4: 2 bytes of codes, and 4 of the range, beside 16"
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_text("{}"), "no codebooks"),
        (lambda path: path.write_text(path.read_text().replace('"4":', '"5":')), "lacks a codebook"),
        (lambda path: path.write_text(path.read_text().replace("-3.0", "-1e999")), "no codebooks|none"),
        (lambda path: path.write_text(path.read_text().replace("[-0.75,-0.25", "[0.75,-0.25")), "ascend"),
        (lambda path: path.write_text(path.read_text().replace("-3.0,", "", 1)), "none|another model"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, change, match: str) -> None:
    path = tmp_path / "codes.json"
    path.write_bytes(models.books().read_bytes())
    change(path)
    stack = {"kv-codec": f"kvquant:codebooks={path}"}
    with pytest.raises(ConfigError, match=match) as caught:
        Engine(EngineConfig(stack=stack, threads=1), decoder=models.decoder("full"))
    assert "headrace profile --of codes" in str(caught.value) and "\n" not in str(caught.value)


def test_codebooks_of_another_model() -> None:
    stack = {"kv-codec": f"kvquant:codebooks={models.books(SHAPES)}"}
    with pytest.raises(ConfigError, match="another model"):
        Engine(EngineConfig(stack=stack, threads=1), decoder=models.decoder("full"))


@pytest.mark.parametrize("spec", ["kvquant", "kvquant:codebooks=x,bits=5"])
def test_options_that_are_none(spec: str) -> None:
    with pytest.raises(ConfigError):
        SLOT.make(spec)


def test_the_verb_writes_what_the_codec_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "text.py", tmp_path / "codes.json"
    text.write_text("def add(a, b):\n    return a + b\n" * 20)
    argv = ["profile", "--model", "tiny", "--of", "codes", "--tokens", "64", "--out", str(out)]
    assert cli.main([*argv, "--text", str(text), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layers"] == 8 and told["weights"] == "uniform"
    assert cli.main([*argv[:-3], "8", *argv[-2:]]) == 0, "from what the model writes itself"
    argv = [
        "run",
        "def f(x):",
        "--max-tokens",
        "4",
        "--temperature",
        "0",
        "--kv-codec",
        f"kvquant:codebooks={out}",
    ]
    assert cli.main(argv) == 0
    assert cli.main(["profile", "--out", str(out), "--text", str(text)]) == 2
