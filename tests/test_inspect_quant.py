"""What quantizing costs: the figures against closed forms and bitsandbytes itself, and the command that shows them."""

from __future__ import annotations

import json
import math
import sys
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import bitsandbytes.functional as bnb
import pytest
import torch
from click.testing import CliRunner
from test_cli import lorakit_command
from test_condensed import own_loss
from test_views import shown
from torch import Tensor, nn

import lorakit
from helpers import bitsandbytes_weight, make_gpt2, make_llama
from lorakit.artifacts.pictures import check_plot
from lorakit.artifacts.quantization_error import (
    QuantizationError,
    QuantizationReport,
    measure,
    quantize_and_measure,
    together,
)
from lorakit.artifacts.quantization_view import draw, quantization_view, save_plot
from lorakit.hooks import QuantizedWeight, hookimpl
from lorakit.hooks.manager import Plugins
from lorakit.layers.quantized_linear import QuantizedLinear
from lorakit.plugins import default_plugins, load_plugins
from lorakit.trainers.text_loss import mean_loss, read_loss_text

PLUGINS = load_plugins()
Write = Callable[[str, str], Path]


@dataclass(frozen=True)
class Shrunk:
    """Stores a share of the weight, in 16 bits, beside two bytes that nobody needs."""

    name: ClassVar[str] = "shrunk"
    share: float = 0.875

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        tensors = {"kept": (weight * self.share).half(), "more": torch.zeros(2, dtype=torch.uint8)}
        return QuantizedWeight(tensors, (weight.shape[0], weight.shape[1]), weight.dtype)

    def dequantize(self, quantized: QuantizedWeight) -> Tensor:
        return quantized.tensors["kept"].to(quantized.dtype)

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        return 99.0


@dataclass(frozen=True)
class Observing(Shrunk):
    """The same, and would look at inputs if it were given any."""

    name: ClassVar[str] = "observing"

    def observe(self, x: Tensor, seen: object) -> object:
        raise AssertionError("nothing runs through a model to measure its weights")

    def quantize_observed(self, weight: Tensor, seen: object) -> QuantizedWeight:
        raise AssertionError("there are no inputs")


@pytest.fixture
def plugins() -> Plugins:
    module = types.SimpleNamespace(lorakit_quantizers=hookimpl(lambda: [Shrunk, Observing]))
    return load_plugins(modules={"sample 1.0": module})


def errors_of(text: str, model: nn.Module, plugins: Plugins | None = None) -> dict[str, QuantizationError]:
    plugins = plugins or default_plugins()
    plan = lorakit.plan(lorakit.parse(text, plugins=plugins), model, plugins=plugins)
    return {found.path: found.error for found in quantize_and_measure(plan, model, plugins)}


def nf4_double(weight: Tensor) -> tuple[Tensor, float]:
    packed, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    # 4 bits, 8 a block of 64, 32 a block of 256 scales, and the offset of the scales
    blocks = -(-weight.numel() // 64)
    bits = 4 * weight.numel() + 8 * blocks + 32 * -(-blocks // 256) + 32
    return bitsandbytes_weight(packed, state), bits / weight.numel()


def fp4(weight: Tensor) -> tuple[Tensor, float]:
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="fp4")
    return bitsandbytes_weight(packed, state), 4 + 32 / 64


def int8(weight: Tensor) -> tuple[Tensor, float]:
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.half())
    return bnb.int8_vectorwise_dequant(codes, scales).to(weight.dtype), 8 + 32 / weight.shape[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("call", "peer"), [("nf4 double", nf4_double), ("fp4", fp4), ("int8", int8)], ids=["nf4 double", "fp4", "int8"]
)
def test_figures_are_those_of_bitsandbytes(
    call: str, peer: Callable[[Tensor], tuple[Tensor, float]], dtype: torch.dtype
) -> None:
    model = make_llama().to(dtype)
    errors = errors_of(f"quantize @linear {call}", model)
    assert len(errors) == 14
    for path, error in errors.items():
        weight = model.get_parameter(f"{path}.weight").detach()
        restored, bits = peer(weight)
        lost, kept = (weight.double() - restored.double()).numpy(), weight.double().numpy()
        assert error.max_error == abs(lost).max()
        assert error.error_square == pytest.approx((lost**2).sum(), rel=1e-12)
        assert error.relative_error == pytest.approx(math.sqrt((lost**2).sum() / (kept**2).sum()), rel=1e-12)
        assert error.sqnr_db == pytest.approx(10 * math.log10((kept**2).sum() / (lost**2).sum()), rel=1e-12)
        assert error.bits_per_weight == pytest.approx(bits, rel=1e-12)


def test_a_known_share_lost_gives_known_figures(plugins: Plugins) -> None:
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    nn.init.constant_(model.get_parameter("0.weight"), 2.0)
    error = errors_of("quantize 0 shrunk", model, plugins)["0"]
    assert (error.square, error.error_square, error.max_error) == (128 * 4.0, 128 / 16, 0.25)
    assert error.relative_error == 1 / 8 and error.sqnr_db == pytest.approx(20 * math.log10(8))
    # counted from the tensors, whatever the quantizer promises
    assert error.bytes_after == 2 * 128 + 2 and error.bits_per_weight == 16 + 1 / 8


def test_nothing_lost_has_no_ratio(plugins: Plugins) -> None:
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    model[0].weight.data = model[0].weight.data.half().float()
    error = errors_of("quantize 0 shrunk(share=1)", model, plugins)["0"]
    assert error.relative_error == 0 and error.sqnr_db is None
    zero = torch.zeros(2, 4)
    assert measure(zero, QuantizedWeight({}, (2, 4), zero.dtype), zero).relative_error == 0
    against_nothing = measure(zero, QuantizedWeight({}, (2, 4), zero.dtype), zero + 1)
    assert against_nothing.relative_error is None and against_nothing.sqnr_db is None


def test_totals_weigh_every_weight_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, 6, generator=generator) for size in (3, 50)]
    restored = [weight + 0.1 * scale for scale, weight in enumerate(weights, 1)]
    stored = QuantizedWeight({"bytes": torch.zeros(10, dtype=torch.uint8)}, (1, 1), torch.float32)
    both = together(measure(weight, stored, back) for weight, back in zip(weights, restored, strict=True))
    whole = measure(torch.cat(weights), stored, torch.cat(restored))
    assert both.relative_error == pytest.approx(whole.relative_error, rel=1e-12)
    assert (both.weights, both.max_error, both.bytes_after) == (whole.weights, whole.max_error, 20)


def test_long_weights_are_measured_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 6, generator=torch.Generator().manual_seed(0))
    stored = QuantizedWeight({}, (37, 6), torch.float32)
    whole = measure(weight, stored, weight.half().float())
    monkeypatch.setattr("lorakit.artifacts.quantization_error.CHUNK", 20)
    pieces = measure(weight, stored, weight.half().float())
    assert pieces.max_error == whole.max_error
    assert pieces.relative_error == pytest.approx(whole.relative_error, rel=1e-12)


def test_a_calibrated_quantizer_is_measured_without_inputs(plugins: Plugins) -> None:
    errors = errors_of("quantize q_proj observing", make_llama(), plugins)
    assert {error.relative_error and round(error.relative_error, 3) for error in errors.values()} == {0.125}


def test_transposed_weights_are_quantized_as_apply_does() -> None:
    model = make_gpt2()
    errors = errors_of("quantize c_attn nf4", model)
    weight = model.get_parameter("transformer.h.0.attn.c_attn.weight").detach().T
    packed, state = bnb.quantize_4bit(weight.contiguous(), blocksize=64, quant_type="nf4")
    lost = weight - bitsandbytes_weight(packed, state)
    assert errors["transformer.h.0.attn.c_attn"].max_error == float(lost.abs().max())


def test_the_model_stays_as_it_is_unless_kept() -> None:
    model, plugins = make_llama(), default_plugins()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = lorakit.plan("adapt q_proj rank 4 quant nf4\nquantize @linear none", model)
    quantize_and_measure(plan, model, plugins)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    quantize_and_measure(plan, model, plugins, keep=True)
    layer = model.get_submodule("model.layers.1.self_attn.q_proj")
    assert isinstance(layer, QuantizedLinear) and layer.quantizer.name == "nf4"
    assert type(model.get_submodule("model.layers.1.self_attn.k_proj")) is nn.Linear


def test_one_weight_at_a_time_is_held() -> None:
    alive: list[weakref.ref[Tensor]] = []

    @dataclass(frozen=True)
    class Watched(Shrunk):
        """Looks whether what it made before is gone."""

        name: ClassVar[str] = "watched"

        def quantize(self, weight: Tensor) -> QuantizedWeight:
            assert all(made() is None for made in alive)
            quantized = super().quantize(weight)
            alive.extend(weakref.ref(tensor) for tensor in quantized.tensors.values())
            return quantized

    plugins = load_plugins(
        modules={"sample 1.0": types.SimpleNamespace(lorakit_quantizers=hookimpl(lambda: [Watched]))}
    )
    errors_of("quantize @linear watched", make_llama(), plugins)
    assert len(alive) == 2 * 14
    # and where the quantized layers are kept, their originals go
    model = make_llama()
    originals = [weakref.ref(model.get_submodule(f"model.layers.{index}.mlp.up_proj")) for index in (0, 1)]
    quantize_and_measure(lorakit.plan("quantize up_proj nf4", model), model, default_plugins(), keep=True)
    assert [original() for original in originals] == [None, None]


def test_what_cannot_be_measured_is_named(plugins: Plugins) -> None:
    def run(text: str, model: nn.Module) -> None:
        errors_of(text, model, plugins)

    with pytest.raises(lorakit.PlanError, match="quantizes nothing: write `quant nf4 double`"):
        run("adapt q_proj rank 4", make_llama())
    broken = make_llama()
    broken.get_submodule("model.layers.1.mlp.up_proj").weight.data[0, 0] = math.nan
    with pytest.raises(lorakit.ModelError, match=r"`model.layers.1.mlp.up_proj` holds values that are not finite"):
        run("quantize up_proj shrunk", broken)
    with pytest.raises(lorakit.PluginError, match=r"`shrunk` gives values that are not finite on `model.layers.0"):
        run("quantize up_proj shrunk(share=1e9)", make_llama())
    plan = lorakit.plan("quantize q_proj nf4", make_llama())
    with pytest.raises(lorakit.PlanError, match=r"another model: it decides `model.layers.0.self_attn.q_proj`"):
        quantize_and_measure(plan, make_gpt2(), plugins)
    with pytest.raises(lorakit.ModelError, match="quantized already"):
        quantize_and_measure(plan, lorakit.apply(plan, make_llama()), plugins)


def test_the_loss_is_the_mean_cross_entropy(llama_folder: Path, write: Write) -> None:
    from transformers import AutoModelForCausalLM

    text = write("text.txt", "one paragraph\n\nand one that is rather longer than twenty tokens\n")
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    read = read_loss_text(text, model, str(llama_folder), PLUGINS, tokens=20)
    assert [len(row.input_ids) for row in read.tokenized.rows] == [14, 20] and read.tokenized.cut == 1
    with torch.no_grad():
        losses = [
            model(input_ids=ids, labels=ids).loss
            for row in read.tokenized.rows
            for ids in [torch.tensor([row.input_ids])]
        ]
    # transformers' own mean of each row, by the tokens that the row predicts
    assert mean_loss(model, read) == pytest.approx(float(13 * losses[0] + 19 * losses[1]) / 32, rel=1e-6)
    assert len(read_loss_text(text, model, str(llama_folder), PLUGINS, tokens=20, rows=1).tokenized.rows) == 1
    assert read_loss_text(text, model, str(llama_folder), PLUGINS, tokens=512).limit == 64


@pytest.mark.parametrize(("make", "condenses"), [(make_llama, True), (own_loss, False)])
def test_the_loss_takes_logits_of_what_is_learned_alone(
    make: Callable[..., nn.Module], condenses: bool, llama_folder: Path, write: Write
) -> None:
    records = [("a question of some length?", " yes"), ("another one?", " no, and that is all")]
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in records]
    model: Any = make(vocab_size=259)
    read = read_loss_text(write("text.jsonl", "\n".join(lines)), model, str(llama_folder), PLUGINS, tokens=64)
    total = 0.0
    for row in read.tokenized.rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        total += float(nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum"))
    seen: list[int] = []

    def rows_of_text(items: Any) -> Any:
        # what comes before is the trial of what the model can be asked for
        seen.clear()
        yield from items

    model.lm_head.register_forward_hook(lambda _module, given, _output: seen.append(given[0][..., 0].numel()))
    assert mean_loss(model, read, rows_of_text) == pytest.approx(total / read.tokenized.trained_tokens, rel=1e-6)
    assert seen == [row.learned if condenses else len(row.input_ids) for row in read.tokenized.rows]
    assert read.tokenized.trained_tokens < sum(len(row.input_ids) for row in read.tokenized.rows) / 2


def test_the_loss_takes_a_language_model_and_its_own_tokenizer(llama_folder: Path, write: Write) -> None:
    text = write("text.txt", "some text\n")
    with pytest.raises(lorakit.ModelError, match="a causal language model, and Sequential is none"):
        read_loss_text(text, nn.Sequential(nn.Linear(2, 2)), str(llama_folder), PLUGINS, tokens=20)
    with pytest.raises(lorakit.ModelError, match="the model knows 10: they are not of one model"):
        read_loss_text(text, make_llama(vocab_size=10), str(llama_folder), PLUGINS, tokens=20)


def report_on(model: nn.Module, text: str) -> QuantizationReport:
    modules = quantize_and_measure(lorakit.plan(text, model), model, default_plugins())
    return QuantizationReport("Llama", modules, together(module.error for module in modules))


SPEC = "adapt q_proj,v_proj rank 4 quant nf4 double\nquantize @mlp int8 layers 0..0\n"


def test_the_table_puts_layers_of_one_kind_together() -> None:
    report = report_on(make_llama(), SPEC)
    lines = shown(quantization_view(report)).splitlines()
    by_module = {line.split()[0]: line for line in lines if line.strip()}
    row = by_module["model.layers.*.self_attn.q_proj"]
    assert "64 × 64" in row and "fp32 → nf4 double" in row and row.split()[1] == "2"
    assert "int8" in by_module["model.layers.*.mlp.up_proj"] and by_module["all"].split()[1] == "7"
    every = shown(quantization_view(report, every_module=True))
    assert "model.layers.0.self_attn.q_proj" in every and "model.layers.1.self_attn.q_proj" in every


def test_the_picture_has_a_point_for_every_module(tmp_path: Path) -> None:
    report = report_on(make_llama(), SPEC)
    figure = draw(report)
    lines: list[Any] = figure.axes[0].get_lines()
    assert sum(len(line.get_ydata()) for line in lines) == len(report.modules) == 7
    drawn = {float(value) for line in lines for value in line.get_ydata()}
    assert drawn == {module.error.relative_error for module in report.modules}
    save_plot(report, tmp_path / "error.png")
    assert (tmp_path / "error.png").read_bytes().startswith(b"\x89PNG")
    save_plot(report, tmp_path / "error.svg")
    assert "</svg>" in (tmp_path / "error.svg").read_text()


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(lorakit.OutputError, match=r"ends in .png, .svg or .pdf"):
        check_plot(tmp_path / "error.safetensors")
    with pytest.raises(lorakit.OutputError, match="there is no folder"):
        check_plot(tmp_path / "none" / "error.png")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Without("matplotlib"), *sys.meta_path])
    with pytest.raises(lorakit.OutputError, match=r"pip install 'lorakit\[plot\]'"):
        check_plot(tmp_path / "error.png")


class _Without:
    """Finds a package missing."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_the_command(llama_folder: Path, write: Write, tmp_path: Path) -> None:
    spec, text = write("spec.lora", SPEC), write("text.txt", "one paragraph\n\nand another one\n")
    common = ("inspect", "--quant", spec, llama_folder, "--loss", text, "--tokens", 32, "--plot", tmp_path / "e.png")
    printed = lorakit_command(*common).stdout
    assert "7 modules" in printed and "perplexity" in printed and "28 tokens predicted" in printed
    assert (tmp_path / "e.png").stat().st_size > 1000
    found = json.loads(lorakit_command(*common, "--format", "json").stdout)
    assert len(found["modules"]) == 7 and found["total"]["weights"] == sum(
        module["error"]["weights"] for module in found["modules"]
    )
    assert found["modules"][0]["quantizer"] == "nf4 double" and found["modules"][0]["error"]["sqnr_db"] > 15
    # the loss after is that of the model as `apply` quantizes it; its adapters change nothing yet
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    read = read_loss_text(text, model, str(llama_folder), PLUGINS, tokens=32)
    assert found["loss"]["before"] == pytest.approx(mean_loss(model, read), rel=1e-6)
    assert found["loss"]["after"] == pytest.approx(mean_loss(lorakit.apply(spec, model), read), rel=1e-6)
    assert found["loss"]["before"] != found["loss"]["after"]
    assert found["loss"]["perplexity_after"] == pytest.approx(math.exp(found["loss"]["after"]))


def test_wrong_uses_of_the_command(llama_folder: Path, write: Write, tmp_path: Path) -> None:
    from lorakit.cli.main import app

    spec = str(write("spec.lora", SPEC))
    for arguments, words in (
        ([str(llama_folder), "--loss", "text.txt"], "it belongs to --quant SPEC"),
        ([str(llama_folder), "--tokens", "3"], "it belongs to --quant SPEC"),
        (["--quant", spec, str(llama_folder), "--rows", "3"], "it belongs to --loss TEXT"),
        (["--quant", spec], "ADAPTER|MODEL"),
        ([spec, str(llama_folder)], "unexpected extra argument"),
    ):
        done = CliRunner().invoke(app, ["inspect", *arguments])
        assert done.exit_code == 2 and words in " ".join(done.output.split()), done.output
    for arguments, words in (
        (["--quant", spec, str(llama_folder), "--loss", str(tmp_path / "none.txt")], "no such data file"),
        (["--quant", str(write("bare.lora", "adapt q_proj rank 2\n")), str(llama_folder)], "quantizes nothing"),
        (["--quant", str(tmp_path / "none.lora"), str(llama_folder)], "none.lora"),
        (["--quant", spec, str(llama_folder), "--plot", str(tmp_path / "error.xyz")], "ends in .png"),
        ([str(llama_folder)], "--quant SPEC"),
    ):
        failure = CliRunner().invoke(app, ["inspect", *arguments]).exception
        assert isinstance(failure, lorakit.LorakitError) and words in str(failure)
    assert "--quant SPEC" in lorakit_command("inspect", llama_folder, code=2).stderr
