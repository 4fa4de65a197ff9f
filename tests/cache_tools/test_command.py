"""build, verify, explain, stats and prune, on a random model and the embedded data set."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome, Run

SMALL = ("--set", "data.options.count=4", "--set", "data.options.validation=0")


@pytest.fixture
def cache(run: Run, tiny_model: Path) -> object:
    """`cache("build", ...)`: `qframe cache build` for qwen-edit on the tiny model."""

    def call(command: str, *arguments: object) -> Outcome:
        return run("cache", command, *arguments, "--family", "qwen-edit", "--model", tiny_model, *SMALL)

    return call


def test_cache_is_built_verified_and_repaired(run: Run, tiny_model: Path) -> None:
    held_out = ("--set", "data.options.count=4", "--set", "data.options.validation=2")
    build = ("cache", "build", "--family", "qwen-edit", "--model", tiny_model, *held_out)
    assert run(*build).out.splitlines()[-1] == "4 examples are ready"
    whole = run("cache", "verify")
    assert (whole.code, whole.err) == (0, "")
    assert whole.out.splitlines()[-1].endswith("entries are whole")

    (shard,) = Path("runs/cache/shards").glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    damaged = run("cache", "verify", "runs/cache")
    assert damaged.code == 3
    assert "error: runs/cache: 1 of " in damaged.err
    assert run("cache", "verify", "--repair").code == 0
    assert run("cache", "verify").code == 0
    assert run(*build).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("verify", "nowhere"), 3, "nowhere: there is no cache"),
        (("build", "--family", "qwen-edit", "--set", "cache.enabled=false"), 2, "cache.enabled is false"),
    ],
)
def test_bad_input_is_named(run: Run, arguments: tuple[str, ...], code: int, message: str) -> None:
    outcome = run("cache", *arguments)
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err


def test_portions_are_built_one_by_one_until_nothing_is_missing(cache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--set", "cache.batch_size=1")
    first = cache("build", "--shard", "2/2", *small)
    assert first.out.splitlines()[-1].startswith("portion 2/2 is ready; ")
    assert first.out.splitlines()[-1].endswith("entries of other portions are still missing")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cache("build", *small).out.splitlines()[-1] == "4 examples are ready"
    monkeypatch.undo()
    wrong = cache("build", "--shard", "3/2")
    assert (wrong.code, "'3/2' is not a portion" in wrong.err) == (2, True)


def test_explain_tells_what_is_stored_and_what_differs(cache: Run) -> None:
    assert cache("explain", "x").code == 3, "there is no cache yet"
    assert cache("build").code == 0
    unknown = cache("explain", "nobody")
    assert unknown.code == 3
    assert "no record is called nobody" in unknown.err
    sample = unknown.err.splitlines()[-1].removeprefix("Ids of this data set are like ").split(", ")[0]
    stored = cache("explain", sample)
    assert stored.code == 0, stored.err
    assert "missing" not in stored.out
    positions = cache("explain", sample, "--set", "encoder.options.positions=upstream")
    lines = [line.split(maxsplit=2) for line in positions.out.splitlines() if line.startswith("  ")]
    told = {line[0]: line for line in lines}
    assert told["target"][1] == "stored"
    assert told["caption"][1] == "missing"
    assert told["caption"][2].endswith("encoder positions mrope -> upstream")
    dtype = cache("explain", sample, "--set", "codec.dtype=bfloat16")
    assert "codec dtype float32 -> bfloat16" in dtype.out


def test_stats_count_the_cache_and_what_a_data_set_needs_of_it(cache: Run, run: Run) -> None:
    assert cache("build").code == 0
    found = json.loads(run("cache", "stats", "--json").out)
    assert found["entries"] == sum(kind["entries"] for kind in found["kinds"].values()) > 8
    assert found["bytes"] == sum(path.stat().st_size for path in Path("runs/cache/shards").iterdir())
    assert "wanted" not in found
    wanted = json.loads(cache("stats", "--json").out)["wanted"]
    assert (wanted["examples"], wanted["parts"], wanted["missing"]) == (4, 16, 0)
    assert wanted["entries"] + wanted["shared"] == wanted["parts"]
    table = cache("stats", "--set", "encoder.options.positions=upstream").out
    assert "  missing     4" in table
    assert re.search(r"written +[\d.]+( min \d\d)? s to [\d.]+( min \d\d)? s ago", table)
    alone = run("cache", "stats", "--set", "train.max_steps=2")
    assert (alone.code, "--family" in alone.err) == (2, True)


def test_prune_says_what_would_go_and_does_it_on_demand(cache: Run, run: Run) -> None:
    assert cache("build").code == 0
    other = ("--set", "encoder.options.positions=upstream")
    assert cache("build", *other).code == 0
    assert cache("prune").out.splitlines()[-1].endswith("4 entries would go; --yes does it")
    assert cache("prune", "--older-than", 1).out.splitlines()[-1] == "there is nothing to take out"
    assert cache("stats", *other).out.count("  missing     0") == 1
    done = cache("prune", "--yes")
    assert done.out.splitlines()[-1].endswith("4 entries are gone"), done.err
    assert "  missing     0" in cache("stats").out
    assert "  missing     4" in cache("stats", *other).out
    assert run("cache", "verify").code == 0
    nothing = run("cache", "prune")
    assert (nothing.code, "nothing says what is to stay" in nothing.err) == (2, True)


def test_prune_keeps_what_any_of_several_configurations_needs(cache: Run, run: Run, tiny_model: Path) -> None:
    shared = 'family = "qwen-edit"\noutput = "runs/x"\n[data.options]\ncount = 4\nvalidation = 0\n'
    for name, positions in (("a", "mrope"), ("b", "upstream")):
        Path(f"{name}.toml").write_text(
            f'model = "{tiny_model}"\n{shared}[encoder.options]\npositions = "{positions}"\n'
        )
        built = run("cache", "build", "--config", f"{name}.toml")
        assert built.code == 0, built.err
    both = run("cache", "prune", "--config", "a.toml", "--config", "b.toml")
    assert both.out.splitlines()[-1] == "there is nothing to take out", both.err
    assert "4 entries would go" in run("cache", "prune", "--config", "b.toml").out


def test_records_held_out_are_built_and_kept_where_a_loss_is_taken_over_them(cache: Run) -> None:
    held = ("--set", "data.holdout=0.5", "--set", "validation.every=5")
    told = re.fullmatch(r"(\d) examples are ready, and (\d) held out", cache("build", *held).out.splitlines()[-1])
    assert told is not None
    assert sum(map(int, told.groups())) == 4
    assert "  missing     0" in cache("stats", *held).out
    assert cache("prune", *held).out.splitlines()[-1] == "there is nothing to take out"
    assert "entries would go" in cache("prune", "--set", "data.holdout=0.5").out


CHANGES = {
    "encoder.options.positions=upstream": ({"caption"}, "encoder positions mrope -> upstream"),
    "encoder.options.max_length=77": ({"caption"}, "encoder max_length None -> 77"),
    "encoder.dtype=bfloat16": ({"caption"}, "encoder dtype float32 -> bfloat16"),
    "transformers": ({"caption"}, "encoder transformers"),
    "codec.dtype=bfloat16": ({"target", "reference", "loss"}, "codec dtype float32 -> bfloat16"),
    "train.learning_rate=0.5": (set(), ""),
    "denoiser.dtype=bfloat16": (set(), ""),
}


def test_a_change_of_the_encoder_costs_text_one_of_the_codec_latents_and_others_nothing(
    cache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache("build").code == 0
    unknown = cache("explain", "nobody").err
    sample = unknown.splitlines()[-1].removeprefix("Ids of this data set are like ").split(", ")[0]
    for change, (missing, said) in CHANGES.items():
        with monkeypatch.context() as patch:
            if change == "transformers":
                patch.setattr(importlib.metadata, "version", lambda name: "99.0")
                changed = cache("explain", sample)
            else:
                changed = cache("explain", sample, "--set", change)
        assert changed.code == 0, changed.err
        lines = [line.split() for line in changed.out.splitlines() if line.startswith("  ")]
        assert {line[0] for line in lines if "missing" in line} == missing, change
        assert said in changed.out


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """By role, the device of what was loaded."""
    from qframe_qwen.codec import QwenCodec
    from qframe_qwen.denoiser import StockDenoiser
    from qframe_qwen.encoder import QwenVLEncoder

    devices: dict[str, str] = {}

    def watch(kind: type, name: str) -> None:
        load = kind.load  # type: ignore[attr-defined]

        def watched(*arguments: object, device: object, **options: object) -> object:
            devices[name] = str(device)
            return load(*arguments, device=device, **options)

        monkeypatch.setattr(kind, "load", watched)

    watch(QwenCodec, "codec")
    watch(QwenVLEncoder, "encoder")
    watch(StockDenoiser, "denoiser")
    return devices


def test_encoder_and_codec_are_loaded_on_devices_of_their_own_and_the_denoiser_not_at_all(
    cache: Run, loads: dict[str, str]
) -> None:
    built = cache("build", "--set", "device=cpu", "--set", "encoder.device=cpu:0")
    assert built.code == 0, built.err
    assert loads == {"codec": "cpu", "encoder": "cpu:0"}
    loads.clear()
    assert cache("build").code == 0
    assert loads == {}, "everything is there: nothing is loaded"


def test_training_from_a_cache_encodes_no_picture_and_loads_neither_encoder_nor_codec(
    cache: Run, run: Run, tiny_model: Path, loads: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache("build", "--output", "runs/a").code == 0
    loads.clear()
    for opener in ("qframe.pictures.pool.open_fitted", "qframe.cache.encoding.open_loss_map"):
        monkeypatch.setattr(opener, lambda *a, **k: pytest.fail("a picture was opened to encode it"))
    steps = ("--set", "train.max_steps=2", "--set", "sample.count=0")
    trained = run("train", "--family", "qwen-edit", "--model", tiny_model, "--output", "runs/a", *SMALL, *steps)
    assert trained.code == 0, trained.err
    assert set(loads) == {"denoiser"}


def test_quantised_weights_are_listed_and_pruned_by_the_rules_of_entries(
    run: Run, tiny_model: Path, tmp_path: Path
) -> None:
    """A run's weights stay where its configuration is given; others go, and are made again when they are needed."""
    options = ("--family", "qwen-edit", "--model", str(tiny_model), "--set", "data.options.count=2")
    options += ("--set", f"cache.dir={tmp_path / 'cache'}", "--set", "encoder.quantise.use=quanto")
    eight = (*options, "--set", "encoder.quantise.options.weights=qint8")
    floats = (*options, "--set", "encoder.quantise.options.weights=qfloat8")
    for chosen in (eight, floats):
        assert run("cache", "build", *chosen).code == 0
    folder = str(tmp_path / "cache")
    listed = run("cache", "stats", folder)
    assert "quantised     2, " in listed.out
    assert f"encoder     of {tiny_model} by quanto, " in listed.out
    as_json = json.loads(run("cache", "stats", folder, "--json").out)
    assert [one["about"]["role"] for one in as_json["quantised"]] == ["encoder", "encoder"]

    assert run("cache", "verify", folder).code == 0
    damaged = next((tmp_path / "cache" / "quantised").glob("*/0000.safetensors"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = run("cache", "verify", folder)
    assert (found.code, f"{damaged}: content differs" in found.out) == (3, True)
    damaged.write_bytes(whole)

    planned = run("cache", "prune", *eight)
    assert planned.out.count("by quanto") == 1
    assert "would go" in planned.out
    assert "quantised     2, " in run("cache", "stats", folder).out
    done = run("cache", "prune", *eight, "--yes")
    assert ": gone" in done.out
    left = json.loads(run("cache", "stats", folder, "--json").out)["quantised"]
    assert [one["about"]["ingredients"]["quantised"].split()[2] for one in left] == ["qint8"]
    assert "quantised" not in run("cache", "prune", "--folder", folder, "--older-than", "1").out
    assert ": gone" in run("cache", "prune", "--folder", folder, "--older-than", "0", "--yes").out
    assert json.loads(run("cache", "stats", folder, "--json").out)["quantised"] == []
