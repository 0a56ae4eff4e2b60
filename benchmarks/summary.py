"""The README's results: one table and one picture of what the other benchmarks and the recipes have measured.

    python benchmarks/summary.py        (or: make bench, which runs it last)

Nothing is measured here. Sizes and top-1 come from ``data/weights/*.json`` and ``results/quantization.json``, speed
from ``results/deployment.json``, and photographs from ``results/photographs-*.json``.
"""

import json
import re
from pathlib import Path

import yolo_slim_lessons as slim
from yolo_slim_lessons.files import write_atomically
from yolo_slim_lessons.search import pareto_front
from yolo_slim_lessons.teaching import plots

ROOT = Path(__file__).parents[1]
RESULTS, WEIGHTS = ROOT / "benchmarks" / "results", ROOT / "data" / "weights"
PICTURE = RESULTS / "pareto.png"
MARKED = re.compile(r"(<!-- results -->\n).*(<!-- end of results -->)", re.DOTALL)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def compressed() -> dict[str, dict]:
    """Results of the recipes that start from a trained model, smallest file first."""
    results = {file.stem: read(file) for file in WEIGHTS.glob("*.json")}
    recipes = {name: result for name, result in results.items() if "start" in result["recipe"]}
    return dict(sorted(recipes.items(), key=lambda item: -item[1]["factor"]))


def table(nano: dict, speeds: dict[str, dict]) -> list[str]:
    """Rows for the recipes' files, then for what was timed."""
    parameters = slim.count_parameters(slim.load_model("nano"))
    lines = [
        "| file | top-1 on test | points | parameters | bytes | times smaller than nano's FP32 weights |",
        "|---|---|---|---|---|---|",
        f"| nano, FP32 weights | {nano['test_top1']:.2%} | | {parameters:,} | {4 * parameters:,} | 1 |",
    ]
    for name, result in compressed().items():
        last = result["stages"][-1]
        points = 100 * (result["test_top1"] - nano["test_top1"])
        lines.append(
            f"| {name}: {', '.join(f'`{file}`' for file in result['recipe']['makes'])} | {result['test_top1']:.2%} "
            f"| {points:+.2f} | {last['parameters']:,} | {last['packed_bytes']:,} | {result['factor']:.1f} |"
        )
    lines += [
        "",
        "| run by | top-1 on test | bytes | ms, 1 image | times faster | ms, 64 images | times faster |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in speeds.items():
        times = [f"{row[size]['milliseconds']:.2f} | {row[size]['speedup']:.2f}" for size in ("batch 1", "batch 64")]
        lines.append(f"| {name} | {row['top1']:.2%} | {row['bytes']:,} | {' | '.join(times)} |")
    return lines


def points(nano: dict, speeds: dict[str, dict]) -> dict[str, list[dict]]:
    """For each label of an axis, what is drawn there: name, cost and top-1 in percent."""
    bytes_of = {"nano, FP32": (4 * slim.count_parameters(slim.load_model("nano")), nano["test_top1"])}
    quantized = read(RESULTS / "quantization.json")
    bytes_of |= {name: (row["bytes"], row["test"]) for name, row in quantized.items() if "bytes" in row}
    bytes_of |= {name: (row["stages"][-1]["packed_bytes"], row["test_top1"]) for name, row in compressed().items()}
    return {
        "kilobytes on disk": [
            {"name": name, "cost": size / 1e3, "top1": 100 * top1} for name, (size, top1) in bytes_of.items()
        ],
        "milliseconds for 64 images": [
            {"name": name, "cost": row["batch 64"]["milliseconds"], "top1": 100 * row["top1"]}
            for name, row in speeds.items()
        ],
    }


def draw(panels: dict[str, list[dict]]) -> bytes:
    """Top-1 against each cost; a line joins what nothing else beats."""
    figure, all_axes = plots.new_figure(1, len(panels), size=(11, 4.2))
    for axes, (label, records) in zip(all_axes, panels.items(), strict=True):
        front = pareto_front(records, maximize=["top1"], minimize=["cost"])
        front.sort(key=lambda record: record["cost"])
        axes.plot(*([record[key] for record in front] for key in ("cost", "top1")), color=plots.GREEN, linewidth=1)
        for record in records:
            color = plots.GREEN if record in front else plots.BLUE
            axes.plot(record["cost"], record["top1"], "o", color=color)
            if record in front:
                axes.annotate(
                    record["name"], (record["cost"], record["top1"]), (5, -11), textcoords="offset points", fontsize=8
                )
        axes.set(xscale="log", xlabel=label, ylabel="top-1 on the 10,000 test images (%)")
    return plots.png(figure)


def results() -> tuple[dict, dict[str, dict], str]:
    """What was measured: nano's training, the speeds, and on which machine these were taken."""
    speeds = read(RESULTS / "deployment.json")
    made_on = speeds.pop("machine")
    return read(WEIGHTS / "nano.json"), speeds, made_on


def photographs() -> list[str]:
    """Files of 8 bits beside each other, for each checkpoint that ``photographs.py`` was given."""
    lines, machines = [], {}
    for file in sorted(RESULTS.glob("photographs-*.json")):
        stored = read(file)
        machines[stored["machine"]] = True
        for key, row in stored.items():
            kind, _, runtime = key.removeprefix("runtimes: ").partition(", in ")
            if runtime == "ONNX Runtime":
                milliseconds, faster = row["batch 1"]
                points, low, high = (100 * share for share in row["difference"])
                cells = [file.stem.removeprefix("photographs-"), kind, f"{row['test']:.2%}"]
                cells += [f"{points:+.2f} ({low:+.2f} to {high:+.2f})", f"{row['bytes']:,}"]
                lines.append(f"| {' | '.join(cells)} | {milliseconds:.2f} | {faster:.2f} |")
    return [
        "On colour photographs of flowers at 224 px, from checkpoints that other people trained from pretrained "
        "weights (`benchmarks/photographs.py`); points with their 95 % interval, paired on the same test images; one "
        f"thread in ONNX Runtime, in turns with FP32, on {'; '.join(machines)}:",
        "",
        "| start | file | top-1 on test | points | bytes | ms, 1 image | times faster |",
        "|---|---|---|---|---|---|---|",
        *lines,
    ]


def section() -> str:
    """All that the README says between the two marks."""
    nano, speeds, made_on = results()
    lines = [
        "",
        *table(nano, speeds),
        "",
        "![Top-1 against bytes and against time; a line joins what nothing else beats.]"
        f"({PICTURE.relative_to(ROOT).as_posix()})",
        "",
        "Times are medians of rounds in turns with nano in FP32 in ONNX Runtime, which is the first row. Timed on "
        f"{made_on}.",
        "",
        *photographs(),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    nano, speeds, _ = results()
    image = draw(points(nano, speeds))
    write_atomically(PICTURE, lambda file: file.write_bytes(image))
    readme = ROOT / "README.md"
    text, found = MARKED.subn(lambda match: match[1] + section() + match[2], readme.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{readme.name} has no lines <!-- results --> and <!-- end of results --> to write between")
    write_atomically(readme, lambda file: file.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
