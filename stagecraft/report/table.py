"""The table at the end of a run: teacher, student and ratio, from metrics.json."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from stagecraft.evaluation.metrics import Metrics, Protocol, read_metrics, student_steps

FEATURE_MEASURES = ("fid", "fid_equal", "kid", "precision", "recall")
Measure = Literal[
    "fid",
    "fid_equal",
    "kid",
    "precision",
    "recall",
    "agreement",
    "clip_score",
    "macs",
    "macs_with_attention",
    "params",
    "params_active",
    "milliseconds",
    "images_per_second",
    "peak_memory_mib",
]
# Key, name, how to write a value; costs first, those by the clock before the others.
ROWS: tuple[tuple[Measure, str, str], ...] = (
    ("milliseconds", "milliseconds an image and step", "{:.4g}"),
    ("images_per_second", "images per second", "{:.4g}"),
    ("peak_memory_mib", "peak memory, MiB", "{:.4g}"),
    ("macs", "MACs per step (thop)", "{:,.0f}"),
    ("macs_with_attention", "MACs per step with attention", "{:,.0f}"),
    ("params", "parameters", "{:,.0f}"),
    ("params_active", "parameters active in one step", "{:,.0f}"),
    ("fid", "FID", "{:.4g}"),
    ("fid_equal", "FID of {equal_count:,} images each", "{:.4g}"),
    ("kid", "KID", "{:.4g}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("agreement", "class as in the prompt (guidance {guidance:g})", "{:.3f}"),
    ("clip_score", "CLIP score (guidance {guidance:g})", "{:.2f}"),
)
OPTIONAL = {
    "fid_equal": "equal_count",
    "agreement": "guidance",
    "clip_score": "clip",
}  # rows that need a value of the protocol


def table_rows(metrics: Metrics) -> list[tuple[str, str, str, str, str]]:
    """Rows of (what, teacher, student, ratio or difference, held-out real images) as text; a dash where there is no value.

    FIDs of held-out images stand in the row of equal numbers of images alone, as an FID falls with their number.
    """
    protocol = metrics["protocol"]
    held_out = {**metrics["held_out"], "fid": None}
    rows: list[tuple[str, str, str, str, str]] = []
    for key, name, form in ROWS:
        if key in OPTIONAL and protocol.get(OPTIONAL[key]) is None:
            continue
        what = name.format_map(protocol) + (f" ({feature_name(metrics)})" if key in FEATURE_MEASURES else "")
        teacher, student = (write(key, form, metrics[model]) for model in ("teacher", "student"))
        rows.append((what, teacher, student, compared(key, metrics["ratio"]), write(key, form, held_out)))
        if key == "fid":
            rows += control_rows(metrics)
    return rows


def control_rows(metrics: Metrics) -> list[tuple[str, str, str, str, str]]:
    """The row of FIDs of the teacher in fewer steps and of the student, where there is such a teacher."""
    control = metrics["fewer_steps"]
    if control is None:
        return []
    what = f"FID, the teacher in {control['steps']} steps ({feature_name(metrics)})"
    return [(what, write("fid", "", control), write("fid", "", metrics["student"]), compared("fid", control), "-")]


def feature_name(metrics: Metrics) -> str:
    """The extractor as it stands beside every figure that was measured with it."""
    return f"{metrics['protocol']['extractor']['name']} features"


def write(key: Measure, form: str, values: Mapping[str, Any]) -> str:
    """A value written by `form`, or with its margin where it has one; a dash for None."""
    value = values.get(key)
    margin = values.get(f"{key}_margin")
    if value is None:
        return "-"
    return form.format(value) if margin is None else with_margin(value, margin)


def with_margin(value: float, margin: float, sign: str = "") -> str:
    """A value and half of its 95 % interval, to the two leading digits of the latter: 0.0202 ± 0.0031."""
    if margin == 0:
        return f"{value:{sign}.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(margin)))
    return f"{value:{sign}z.{digits}f} ± {margin:.{digits}f}"


def compared(key: str, ratio: Mapping[str, Any]) -> str:
    """The ratio of one row, for FID the difference; the measured time with the predicted one behind it, where there is one."""
    if key == "fid":
        return with_margin(ratio["fid_difference"], ratio["fid_difference_margin"], "+")
    if key == "milliseconds":
        predicted = f" (predicted {ratio['time_predicted']:.3f})" if "time_predicted" in ratio else ""
        return f"x {ratio['time']:.3f}{predicted}"
    return f"x {ratio[key]:.3f}" if key in ratio else "-"


def measured_with(protocol: Protocol) -> str:
    """One line that says what the figures were measured with."""
    extractor = protocol["extractor"]
    reference = protocol["reference"]
    own = student_steps(protocol)
    steps = f"{protocol['steps']} steps" + (f" (the student {own})" if own != protocol["steps"] else "")
    kind = "" if extractor["name"] == extractor["kind"] else f" ({extractor['kind']})"
    return (
        f"FID, KID, precision and recall: {protocol['samples']:,} samples each, {protocol['sampler']}, "
        f"{steps}, seed {protocol['seed']}; features of {extractor['name']}{kind}; "
        f"reference {reference['count']:,} training images, sha256 {reference['sha256'][:12]}"
    )


def format_table(metrics: Metrics) -> str:
    """The contents of metrics.json as plain text, a line that names the measure below."""
    rows = [("", "teacher", "student", "ratio", "held-out real"), *table_rows(metrics)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join([*lines, measured_with(metrics["protocol"])])


if __name__ == "__main__":
    import sys
    from pathlib import Path

    print(format_table(read_metrics(Path(sys.argv[1]))))
