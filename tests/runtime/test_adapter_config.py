"""adapter_config.json: every field round-trips.

PEFT's, the oracle's and the authors' files are read; errors name keys.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from loramux_runtime.fused.adapters.dynmole.config import DynMoleConfig
from loramux_runtime.fused.adapters.lora.config import LoraConfig
from loramux_runtime.fused.adapters.methods import METHODS
from loramux_runtime.fused.adapters.mixlora.config import MixLoraConfig
from loramux_runtime.fused.adapters.mola.config import LoraMoeConfig, MolaConfig
from loramux_runtime.jobs.adapter_config import config_of, known_keys, parse_config, write_config
from loramux_runtime.jobs.adapter_files import read_adapter_config
from loramux_runtime.jobs.peft_fields import CHECKED, IGNORED, REFUSED, WHICH
from loramux_traces.errors import InvalidInputError

from .matrix import CASES

ORACLE = Path(__file__).parents[1] / "oracle"
MODULES = ("q_proj", "v_proj")

EVERY_FIELD: dict[str, Any] = {
    "lora": LoraConfig(rank=3, alpha=2.5, dropout=0.2, target_modules=MODULES, use_rslora=True, use_dora=True),
    "mixlora": MixLoraConfig(
        rank=3,
        alpha=7.0,
        dropout=0.3,
        num_experts=5,
        top_k=3,
        expert_modules=("up_proj", "down_proj"),
        attention=LoraConfig(
            rank=2, alpha=3.0, dropout=0.1, target_modules=("o_proj",), use_rslora=True, use_dora=True
        ),
        router_aux_loss_coef=0.5,
        router_init_std=0.1,
        use_rslora=True,
        use_dora=True,
    ),
    "mola": MolaConfig(
        rank=3,
        alpha=7.0,
        dropout=0.3,
        target_modules=MODULES,
        num_experts=(2, 4, 6),
        top_k=1,
        router_aux_loss_coef=0.5,
        use_rslora=True,
    ),
    "loramoe": LoraMoeConfig(
        rank=3, alpha=7.0, dropout=0.3, target_modules="attention", num_experts=5, use_rslora=True
    ),
    "dynmole": DynMoleConfig(
        rank=3,
        alpha=7.0,
        dropout=0.3,
        target_modules="qv",
        num_experts=5,
        use_rslora=True,
        entropy_threshold=float("inf"),
        entropy_index=0.7,
        entropy_eps=0.01,
        keep_top_k=1,
        top_p=0.4,
        router_aux_loss_coef=0.5,
        router_dyn_loss_coef=0.6,
        inclusive_nucleus=True,
        renormalise=True,
        normalised_entropy=False,
    ),
}
assert EVERY_FIELD.keys() == METHODS.keys()


def _again(method: str, config: Any) -> tuple[str, Any]:
    text = json.dumps(write_config(method, config, MODULES, "base"), allow_nan=False)
    return parse_config(text, "adapter_config.json")


@pytest.mark.parametrize("method", EVERY_FIELD)
def test_every_field_round_trips(method: str) -> None:
    config, default = EVERY_FIELD[method], METHODS[method].config_type()
    for field in fields(config):
        assert getattr(config, field.name) != getattr(default, field.name), "the test must change it"
    assert _again(method, config) == (method, config)


@pytest.mark.parametrize("name", CASES)
def test_every_case_round_trips(name: str) -> None:
    method, config = CASES[name]
    if method == "lora":  # PEFT knows no presets: the file lists the linears
        config = replace(config, target_modules=MODULES)
    assert _again(method, config) == (method, config)


def test_no_attention_is_not_the_default_attention() -> None:
    assert _again("mixlora", MixLoraConfig(attention=None))[1].attention is None
    assert _again("mixlora", MixLoraConfig())[1] == MixLoraConfig()


def test_a_lora_file_is_what_peft_writes() -> None:
    document = write_config("lora", LoraConfig(rank=4, alpha=8.0), MODULES, "the/base")
    assert document == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "the/base",
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "v_proj"],
        "use_rslora": False,
        "use_dora": False,
    }
    from peft import LoraConfig as PeftConfig

    full = PeftConfig(r=4, lora_alpha=8, target_modules=list(MODULES)).to_dict()
    full = {key: sorted(value) if isinstance(value, set) else value for key, value in full.items()}
    assert parse_config(json.dumps(full), "")[1] == LoraConfig(rank=4, alpha=8.0, dropout=0.0, target_modules=MODULES)


@pytest.mark.parametrize("method", METHODS)
def test_the_oracles_files_are_read(method: str) -> None:
    document = json.loads((ORACLE / f"{method}.json").read_text())
    found, config = read_adapter_config(ORACLE / f"{method}.json")
    assert (found, config.rank, config.alpha) == (method, document["r"], document["lora_alpha"])


def test_the_oracles_mixlora() -> None:
    method, config = read_adapter_config(ORACLE / "mixlora.json")
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert (method, config) == (
        "mixlora",
        MixLoraConfig(rank=4, alpha=8.0, attention=LoraConfig(rank=4, alpha=8.0, target_modules=attention)),
    )


@pytest.mark.parametrize("method", METHODS)
def test_missing_and_null_keys_take_the_defaults(method: str) -> None:
    default = METHODS[method].config_type()
    if method == "lora":  # the file is PEFT's, whose defaults are others than those of a new job
        assert parse_config(json.dumps({"routing_strategy": "lora"}), "") == (method, default)
        default = replace(default, rank=8, alpha=8, dropout=0.0)
    assert parse_config(json.dumps({"peft_type": method.upper()}), "") == (method, default)
    nulls = {key: None for key in known_keys(method) if key not in ("peft_type", "attention_lora")}
    assert parse_config(json.dumps({**nulls, "peft_type": method}), "") == (method, default)


def test_what_the_authors_tools_write() -> None:
    """MoE-PEFT: linears with booleans, `expert_lora` for what the experts have different."""
    document = {
        "peft_type": "MIXLORA",
        "routing_strategy": "mixlora",
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "b",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "use_dora": False,
        "use_rslora": True,
        "target_modules": {"q_proj": True, "k_proj": False, "gate_proj": True, "up_proj": False, "down_proj": True},
        "expert_lora": {"r": 4, "lora_alpha": 8, "use_rslora": False, "bias": "none", "task_type": "CAUSAL_LM"},
        "num_experts": 6,
        "top_k": 3,
        "router_init_range": 0.5,
        "router_loss": False,
        "act_fn": None,
        "jitter_noise": 0.0,
    }
    assert config_of(document, "")[1] == MixLoraConfig(
        rank=4,
        alpha=8.0,
        dropout=0.1,
        num_experts=6,
        top_k=3,
        expert_modules=("gate_proj", "down_proj"),
        attention=LoraConfig(rank=8, alpha=16.0, dropout=0.1, target_modules=("q_proj",), use_rslora=True),
        router_init_std=0.5,
    )


@pytest.mark.parametrize(
    ("modules", "experts", "attention"),
    [
        ("all-linear", 3, "attention"),
        ("mlp", 3, None),
        (["gate_up_proj", "qkv_proj"], 2, ("qkv_proj",)),
        (["up_proj"], 1, None),
    ],
)
def test_target_modules_of_mixlora(modules: Any, experts: int, attention: Any) -> None:
    config = config_of({"method": "mixlora", "target_modules": modules}, "")[1]
    assert len(config.expert_modules) == experts
    assert (config.attention and config.attention.target_modules) == attention


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "peft_type"),
    ({"peft_type": "IA3"}, "column peft_type: .*IA3.* must be one of lora, mixlora"),
    ({"method": 3}, "column method"),
    ({"method": "lora", "r": "4"}, "column r: .* must be an integer"),
    ({"method": "lora", "r": True}, "column r: .* must be an integer"),
    ({"method": "lora", "r": 4.0}, "column r"),
    ({"method": "lora", "r": 10**9}, "column r: .* must be an integer of at most 4096"),
    ({"method": "mola", "num_experts": [2, 10**9]}, "column num_experts"),
    ({"method": "mola", "router_aux_loss_coef": 10**400}, "column router_aux_loss_coef"),
    ({"method": "lora", "r": 0}, "rank must be at least 1"),
    ({"method": "lora", "lora_alpha": -1}, "alpha"),
    ({"method": "lora", "lora_dropout": 1}, "dropout"),
    ({"method": "lora", "use_dora": 1}, "column use_dora: .* must be true or false"),
    ({"method": "lora", "target_modules": "q.*"}, "column target_modules"),
    ({"method": "lora", "target_modules": [1]}, "column target_modules"),
    ({"method": "lora", "target_modules": {"q_proj": 1}}, "column target_modules"),
    ({"method": "lora", "rank_pattern": {"q_proj": 3}}, "column rank_pattern"),
    ({"method": "lora", "bias": "all"}, "column bias"),
    ({"method": "lora", "modules_to_save": ["lm_head"]}, "column modules_to_save"),
    ({"method": "lora", "layers_to_transform": [1]}, "column layers_to_transform"),
    ({"method": "lora", "layers_to_transform": 0}, "column layers_to_transform: .*every layer"),
    ({"method": "lora", "trainable_token_indices": 0}, "column trainable_token_indices: .*not trained"),
    ({"method": "lora", "alora_invocation_tokens": [0]}, "column alora_invocation_tokens"),
    ({"method": "lora", "num_experts": 8}, "column num_experts"),
    ({"method": "lora", "top_k": 2}, "column top_k"),
    ({"method": "mixlora", "top_k": 9}, "top_k"),
    ({"method": "mixlora", "num_experts": [4, 4]}, "column num_experts"),
    ({"method": "mixlora", "target_modules": ["q_proj"]}, "column target_modules"),
    ({"method": "mixlora", "target_modules": ["up_proj", "q_proj"], "attention_lora": None}, "attention_lora"),
    ({"method": "mixlora", "attention_lora": 3}, "column attention_lora"),
    ({"method": "mixlora", "attention_lora": {"rank": 3}}, r"column attention_lora\.rank"),
    ({"method": "mixlora", "attention_lora": {"r": "3"}}, "column r"),
    ({"method": "mixlora", "expert_lora": {"target_modules": ["x"]}}, r"column expert_lora\.target_modules"),
    ({"method": "mixlora", "jitter_noise": 0.1}, "column jitter_noise"),
    ({"method": "mola", "num_experts": [2, "4"]}, "column num_experts"),
    ({"method": "mola", "num_experts": []}, "num_experts"),
    ({"method": "loramoe", "top_k": 2}, "column top_k"),
    ({"method": "dynmole", "top_k": 3}, "column top_k"),
    ({"method": "dynmole", "entropy_index": 1.001}, "entropy_index"),
    ({"method": "dynmole", "top_p": "0.5"}, "column top_p: .* must be a finite number"),
    ({"routing_strategy": "mixlora-switch"}, "column routing_strategy"),
    ({"routing_strategy": "mixlora", "peft_type": "IA3"}, "column peft_type"),
    ({"method": "lora", "r": 10**400}, "column r: .* must be an integer of at most 4096"),
    ({"method": "lora", "lora_alpha": 10**400}, "column lora_alpha"),
    ({"method": "lora", "lora_alpha": 10**13}, "alpha must be a number from 0 to 1e"),
    ({"method": "lora", "lora_alpha": 0}, "alpha must be above 0"),
    ({"method": "lora", "lora_dropout": -0.1}, "dropout must be a number"),
    ({"method": "mola", "num_experts": 1025}, "num_experts must be at most 1024"),
    ({"method": "mola", "num_experts": [2] * 1001}, "num_experts must be 1 to 1000 numbers"),
    ({"method": "mola", "top_k": 4000}, "top_k must be at most 8"),
    ({"method": "lora", "target_modules": [f"x{i}" for i in range(1001)]}, "target_modules must be at most 1000"),
    ({"method": "lora", "target_modules": ["x" * 300]}, "target_modules must be names"),
    ({"method": "lora", "target_modules": ["model.layers.1.self_attn.q_proj"]}, "in each of the 2 layers"),
    ({"method": "lora", "target_modules": [f"layers.{i}.mlp.up_proj" for i in (0, 2)]}, "in each of the 3 layers"),
    ({"method": "lora", "target_modules": ["q_proj"], "exclude_modules": "q.*"}, "column exclude_modules"),
    ({"method": "lora", "exclude_modules": ["q_proj"]}, "column exclude_modules: .* list the linears"),
    ({"method": "lora", "revision": "v1.2"}, "column revision: .*v1.2.*one revision of the base"),
    ({"method": "lora", "task_type": "SEQ_CLS"}, "column task_type: .* must be CAUSAL_LM"),
    ({"method": "lora", "task_type": ["CAUSAL_LM"]}, "column task_type"),
    ({"method": "lora", "auto_mapping": {"base_model_class": "LlamaForTokenClassification"}}, "column auto_mapping"),
    (
        {"method": "lora", "init_lora_weights": "pissa"},
        "init_lora_weights: .* path_initial_model_for_weight_conversion",
    ),
    ({"method": "lora", "init_lora_weights": "pissa_niter_16"}, "column init_lora_weights: .*changes the base"),
    ({"method": "lora", "init_lora_weights": "OLoRA"}, "column init_lora_weights: .*changes the base"),
    ({"method": "lora", "init_lora_weights": "corda"}, "column init_lora_weights: .*changes the base"),
    ({"method": "lora", "init_lora_weights": "lora_ga"}, "column init_lora_weights: .*changes the base"),
    ({"method": "lora", "init_lora_weights": "loftq"}, "column init_lora_weights: .*quantised"),
    ({"method": "lora", "init_lora_weights": "mica"}, "column init_lora_weights: .*keeps B fixed"),
    (
        {"method": "lora", "init_lora_weights": "next year's"},
        "column init_lora_weights: .*true, false or one of gaussian",
    ),
    ({"method": "lora", "init_lora_weights": {"a": 1}}, "column init_lora_weights"),
    ({"method": "mixlora", "attention_lora": {"init_lora_weights": "pissa"}}, "attention_lora.init_lora_weights"),
    ({"method": "lora", "next_years_field": 1}, "column next_years_field: .*is not supported"),
    ({"method": "lora", "next_years_field": {"a": None}}, "column next_years_field"),
]


@pytest.mark.parametrize(("document", "words"), BAD, ids=lambda value: str(value)[:50])
def test_a_wrong_key_is_named(document: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        parse_config(json.dumps(document), "some/adapter_config.json")
    assert "some/adapter_config.json" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '"lora"',
        '{"method": "lora", "lora_alpha": NaN}',
        '{"r": 1, "r": 2}',
        "[" * 100_000,
        "\ud800",
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_what_is_not_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="JSON"):
        parse_config(text.encode("utf-8", "surrogatepass"), "f")


def test_every_field_of_peft_is_known() -> None:
    """Each is a field of ours or stands in one table, with a reason.

    A field that a new PEFT adds breaks this test, and is refused until it is understood.
    """
    from peft import LoraConfig as PeftConfig

    ours = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"}
    tables: list[Any] = [ours, IGNORED, REFUSED, CHECKED.keys() - IGNORED.keys(), WHICH]
    found = {field.name: sum(field.name in table for table in tables) for field in fields(PeftConfig)}
    assert set(found.values()) == {1}, found
    assert known_keys("lora") >= ours and all(reason for table in (IGNORED, REFUSED) for reason in table.values())


@pytest.mark.parametrize("key", REFUSED)
def test_what_would_be_another_function_is_refused_unless_it_asks_for_nothing(key: str) -> None:
    for nothing in (None, False, {}, [], ""):
        assert config_of({"method": "lora", key: nothing}, "")[0] == "lora"
    for something in (True, 1, "x", [1], {"a": 1}, 0.5):
        with pytest.raises(InvalidInputError, match=f"column {key}"):
            config_of({"method": "lora", "target_modules": ["q_proj"], key: something}, "")


@pytest.mark.parametrize("init", [None, True, False, "gaussian", "eva", "orthogonal"])
def test_first_values_alone_are_no_reason_to_refuse(init: Any) -> None:
    document = {
        "peft_type": "LORA",
        "init_lora_weights": init,
        "eva_config": {"rho": 2.0},
        "revision": "main",
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"},
    }
    assert config_of(document, "")[1] == LoraConfig(rank=8, alpha=8, dropout=0.0)


def test_linears_with_their_paths_are_names() -> None:
    paths = [f"model.layers.{i}.{name}" for i in range(12) for name in ("self_attn.q_proj", "mlp.up_proj")]
    for modules, names in (
        (paths[::-1], {"q_proj", "up_proj"}),
        (["self_attn.q_proj", "q_proj"], {"q_proj"}),
        ([*paths, "o_proj"], {"q_proj", "up_proj", "o_proj"}),
    ):
        found = config_of({"method": "lora", "target_modules": modules}, "")[1].target_modules
        assert set(found) == names and len(found) == len(names)
    document = {"method": "lora", "target_modules": paths, "exclude_modules": ["mlp.up_proj"]}
    assert config_of(document, "")[1].target_modules == ("q_proj",)


ABSURD: list[Any] = [0, -1, 10**9, 10**400, 1.5, True, "8", None, float("nan"), float("inf"), [2] * 10**5]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("field", ["rank", "num_experts", "top_k", "alpha", "dropout", "target_modules", "keep_top_k"])
def test_absurd_values_make_no_configuration(method: str, field: str) -> None:
    """Whatever the way to it: nothing is allocated or listed for them."""
    kind = METHODS[method].config_type
    if field not in kind.__dataclass_fields__:
        return
    right = {"alpha": {10**9, 1.5}, "dropout": {0}, "target_modules": {"8"}, "keep_top_k": {0}}
    for value in ABSURD:
        if not isinstance(value, list) and value in right.get(field, ()) and value is not True:
            continue
        with pytest.raises(ValueError, match=rf"{field}|target_modules"):
            kind(**{field: tuple(value) if isinstance(value, list) else value})
