"""Exports in the hands of the real trainers: they load, train, and overfit a batch on the CPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import negtemp_data
from negtemp_data.engine.tokens import PromptEncoder
from negtemp_data.export import ExportRequest, PromptSplit, build_format, export_output
from negtemp_data.prompts import Prompt
from negtemp_data.storage import Output
from small_model import write_model
from small_output import make_job, make_sample, write_output

SCRIPTS = Path(__file__).parents[2] / "jobs" / "train"
STEPS = 20
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
COMPLETIONS = {0: "the cat runs.", 1: "it is a dog, think."}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random two-layer model of a few hundred tokens, with a chat template."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def output(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Twelve prompts with twins, accepted and rejected."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    encoder = PromptEncoder(tokenizer, 1000)
    rows = []
    for number in range(12):
        text = f"Tell me of sea number {number}."
        n_prompt = len(encoder.encode(Prompt("p", text, None, None, None), None))
        for arm in ("control", "negative"):
            for sample, words in COMPLETIONS.items():
                is_accepted = (sample == 0) == (number % 2 == 0)
                completion = f"{number} {words} {arm}"
                row = make_sample(
                    f"p{number}",
                    arm,
                    sample,
                    status="accepted" if is_accepted else "rejected",
                    score=3.5 if is_accepted else 1.5,
                    positions=[1, 3] if arm == "negative" else [],
                    token_ids=[*tokenizer.encode(completion), tokenizer.eos_token_id],
                    prompt=text,
                    prompt_tokens=n_prompt,
                    completion=completion,
                )
                rows.append(row)
    folder = tmp_path_factory.mktemp("training") / "out"
    return write_output(folder, [rows], make_job(model_path))


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of `datasets` of its own, and one thread: the models are tiny."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def export(output: Output, model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports a format and loads it again."""
    folder = tmp_path_factory.mktemp("exports")

    def load(name: str, **options: Any) -> Any:
        dest = folder / f"{name}-{len(list(folder.iterdir()))}"
        chosen = build_format(name, make_job(model_path), options)
        split = PromptSplit({"train": 0.7, "test": 0.3})
        export_output(ExportRequest(output, dest, name, chosen, split))
        loaded = datasets.load_dataset(str(dest))
        # What a user may keep: the same rows through save_to_disk.
        loaded.save_to_disk(str(dest / "disk"))
        assert datasets.load_from_disk(str(dest / "disk"))["train"][:] == loaded["train"][:]
        return loaded

    return load


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("sft", {"prompt", "completion"}),
        ("sft-tokens", {"input_ids", "attention_mask", "labels"}),
        ("dpo", {"prompt", "chosen", "rejected"}),
        ("kto", {"prompt", "completion", "label"}),
        ("unlikelihood", {"input_ids", "labels", "negative_ids"}),
        ("parquet", None),
        ("jsonl", None),
    ],
)
def test_every_format_loads_with_both_splits(export: Any, name: str, columns: Any) -> None:
    loaded = export(name)
    assert set(loaded) == {"train", "test"}
    if columns is None:
        assert loaded["train"].num_rows + loaded["test"].num_rows == 48
        assert {len(row["injections"]) for row in loaded["train"]} == {0, 2}
    else:
        assert set(loaded["train"].column_names) == columns


@pytest.mark.parametrize("name", ["sft-tokens", "unlikelihood"])
def test_formats_of_tokens_repeat_byte_for_byte(
    output: Output, model_path: str, tmp_path: Path, name: str
) -> None:
    split = PromptSplit({"train": 0.7, "test": 0.3})
    files = []
    for dest in (tmp_path / "first", tmp_path / "second"):
        chosen = build_format(name, make_job(model_path), {})
        export_output(ExportRequest(output, dest, name, chosen, split))
        files.append({p.relative_to(dest): p.read_bytes() for p in dest.rglob("*") if p.is_file()})
    assert files[0] == files[1]
    assert {path.name for path in files[0]} >= {"train-00000.parquet", "test-00000.parquet"}


def arguments(tmp_path: Path) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "model"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 0,
        "model_init_kwargs": {"dtype": "float32"},
    }


def losses_of(trainer: Any) -> list[float]:
    """Loss of each step of a training."""
    trainer.train()
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def assert_overfits(losses: list[float]) -> None:
    assert len(losses) == STEPS
    assert losses[-1] <= losses[0] / 2, losses


@pytest.mark.parametrize(
    ("name", "options"),
    [("sft", {}), ("sft", {"shape": "messages"}), ("sft-tokens", {"best_only": False})],
)
def test_sft_overfits_a_batch(
    export: Any, model_path: str, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    from trl import SFTConfig, SFTTrainer

    batch = export(name, **options)["train"].select(range(4))
    trainer = SFTTrainer(
        model=model_path, args=SFTConfig(**arguments(tmp_path)), train_dataset=batch
    )
    assert_overfits(losses_of(trainer))


def test_dpo_overfits_a_batch(export: Any, model_path: str, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    batch = export("dpo")["train"].select(range(4))
    config = DPOConfig(**arguments(tmp_path))
    assert_overfits(losses_of(DPOTrainer(model=model_path, args=config, train_dataset=batch)))


def test_kto_overfits_a_batch(export: Any, model_path: str, tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    batch = export("kto")["train"].select(range(4))
    assert set(batch["label"]) == {True, False}
    config = KTOConfig(**arguments(tmp_path))
    assert_overfits(losses_of(KTOTrainer(model=model_path, args=config, train_dataset=batch)))


def unlikelihood_batch(export: Any) -> Any:
    rows = export("unlikelihood")["train"]
    is_rejected = [any(ids) for ids in rows["negative_ids"]]
    chosen = [i for i, r in enumerate(is_rejected) if r][:2]
    chosen += [i for i, r in enumerate(is_rejected) if not r][:2]
    assert len(chosen) == 4
    return rows.select(chosen)


def test_unlikelihood_overfits_a_batch_and_the_negative_tokens_lose(
    export: Any, model_path: str, tmp_path: Path
) -> None:
    from trl import SFTConfig

    from negtemp_data.export.trainer import UnlikelihoodTrainer

    batch = unlikelihood_batch(export)
    # A model that is sure of the negative tokens, so that there is something to unlearn.
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    names = [(row, i, c) for row in batch for i, ids in enumerate(row["negative_ids"]) for c in ids]
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with torch.no_grad():
        model.lm_head.bias[sorted({c for *_, c in names})] = 12.0

    def negative_log_probability() -> float:
        model.eval()
        total = 0.0
        for row, position, token in names:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
            total += torch.log_softmax(logits[0, position - 1], -1)[token].item()
        return total / len(names)

    before = negative_log_probability()
    config = SFTConfig(**arguments(tmp_path) | {"model_init_kwargs": None})
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    trainer = UnlikelihoodTrainer(
        model=model, args=config, train_dataset=batch, processing_class=tokenizer, alpha=2.0
    )
    # Rejected rows have no label, which makes SFTTrainer drop them: ours must not.
    assert len(trainer.train_dataset) == 4
    losses = losses_of(trainer)
    assert_overfits(losses)
    assert trainer.evaluate(batch)["eval_loss"] <= losses[0] / 2
    assert negative_log_probability() < before - 1


def test_an_accumulation_is_the_mean_of_its_steps(
    export: Any, model_path: str, tmp_path: Path
) -> None:
    from trl import SFTConfig

    from negtemp_data.export.trainer import UnlikelihoodTrainer

    batch = unlikelihood_batch(export)
    options = arguments(tmp_path) | {
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    trainer = UnlikelihoodTrainer(model=model_path, args=SFTConfig(**options), train_dataset=batch)
    # The two steps have different numbers of terms; their order does not matter.
    trainer._get_train_sampler = lambda *_: None
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    halves = [trainer.data_collator([batch[i], batch[i + 1]]) for i in (0, 2)]
    expected = [trainer.compute_loss(model, half).item() for half in halves]
    assert abs(expected[0] - expected[1]) > 0.1
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(expected) / 2, rel=1e-3)


@pytest.mark.parametrize("name", ["sft-tokens", "unlikelihood"])
def test_no_gradient_comes_from_injected_positions_or_prompts(
    export: Any, model_path: str, tmp_path: Path, name: str
) -> None:
    """Through the real trainer's own loss, to the hidden states that speak of each position."""
    from trl import SFTConfig, SFTTrainer

    from negtemp_data.export.trainer import UnlikelihoodTrainer

    options = {"best_only": False} if name == "sft-tokens" else {}
    rows = [
        row for row in export(name, **options)["train"] if any(x != -100 for x in row["labels"])
    ]
    batch = datasets.Dataset.from_list(rows)
    trainer_class = SFTTrainer if name == "sft-tokens" else UnlikelihoodTrainer
    trainer = trainer_class(
        model=model_path, args=SFTConfig(**arguments(tmp_path)), train_dataset=batch
    )
    model = trainer.model
    hidden = []

    def keep(_module: Any, _args: Any, states: torch.Tensor) -> torch.Tensor:
        # Cut from the layers below, so that only the loss of its own position reaches a state.
        hidden.append(states.detach().requires_grad_())
        return hidden[-1]

    handle = model.model.norm.register_forward_hook(keep)
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    trainer.compute_loss(model, dict(inputs)).backward()
    handle.remove()
    reached = hidden[0].grad.abs().sum(-1) > 0
    # State t speaks of token t + 1.
    assert torch.equal(reached[:, :-1], inputs["labels"][:, 1:] != -100)
    n_masked = 0
    for row, line in zip(trainer.train_dataset, reached, strict=True):
        first = next(i for i, label in enumerate(row["labels"]) if label != -100)
        inner = [i for i in range(first, len(row["labels"])) if row["labels"][i] == -100]
        n_masked += len(inner)
        assert not line[: first - 1].any()
        assert not any(line[i - 1] for i in inner)
    assert n_masked >= 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("sft", [], marks=pytest.mark.slow),
        pytest.param("dpo", ["--use_peft"], marks=pytest.mark.slow),
        pytest.param("kto", ["--use_peft"], marks=pytest.mark.slow),
        ("unlikelihood", ["--use_peft"]),
    ],
)
def test_the_scripts_train_on_a_cpu(
    output: Output, model_path: str, tmp_path: Path, name: str, options: list[str]
) -> None:
    chosen = build_format(name, make_job(model_path), {})
    split = PromptSplit({"train": 0.7, "test": 0.3})
    export_output(ExportRequest(output, tmp_path / "data", name, chosen, split))
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPTS / f"{name}.py"), *options),
            *("--dataset_name", str(tmp_path / "data"), "--model_name_or_path", model_path),
            *("--output_dir", str(tmp_path / "model"), "--max_steps", "2"),
            *("--report_to", "none", "--per_device_train_batch_size", "2"),
            *("--eval_strategy", "steps", "--eval_steps", "2"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eval_loss" in done.stdout
    saved = {path.name for path in (tmp_path / "model").iterdir()}
    assert ("adapter_config.json" in saved) == bool(options)
    assert ("model.safetensors" in saved) != bool(options)


@pytest.mark.slow
def test_a_real_run_is_exported_token_by_token(
    negtemp: Any, smol_model: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = str(SCRIPTS.parents[0] / "quickstart.yaml")
    done = negtemp("run", job, "--limit", "3", "--out", str(out), timeout_s=500)
    assert done.returncode == 0, done.stderr
    options = ("--format", "sft-tokens", "--all", "--json")
    done = negtemp("export", str(out), str(tmp_path / "tokens"), *options)
    assert done.returncode == 0, done.stderr
    records = datasets.load_dataset(str(tmp_path / "tokens"))["train"]
    rows = negtemp_data.open_dataset(out).hf().filter(lambda row: row["status"] == "accepted")
    assert len(rows) == len(records) > 0
    tokenizer = AutoTokenizer.from_pretrained(smol_model)
    for row, record in zip(rows, records, strict=True):
        chat = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert record["input_ids"] == prompt + row["token_ids"]
        masked = {i - len(prompt) for i, x in enumerate(record["labels"]) if x == -100}
        injected = {injection["position"] for injection in row["injections"]}
        assert masked == injected | set(range(-len(prompt), 0))
