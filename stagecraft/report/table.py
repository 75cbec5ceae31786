"""The table at the end of a run: teacher, student and ratio, from metrics.json."""

from typing import Literal

from stagecraft.evaluation.metrics import Metrics, Protocol, read_metrics

FEATURE_MEASURES = ("fid", "kid", "precision", "recall")
Measure = Literal[
    "fid",
    "kid",
    "precision",
    "recall",
    "macs",
    "macs_with_attention",
    "params",
    "params_active",
    "milliseconds",
    "images_per_second",
    "peak_memory_mib",
]
# Key, name, how to write a value.
ROWS: tuple[tuple[Measure, str, str], ...] = (
    ("fid", "FID", "{:.4g}"),
    ("kid", "KID", "{:.4g}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("macs", "MACs per step (thop)", "{:,.0f}"),
    ("macs_with_attention", "MACs per step with attention", "{:,.0f}"),
    ("params", "parameters", "{:,.0f}"),
    ("params_active", "parameters active in one step", "{:,.0f}"),
    ("milliseconds", "milliseconds an image and step", "{:.4g}"),
    ("images_per_second", "images per second", "{:.4g}"),
    ("peak_memory_mib", "peak memory, MiB", "{:.4g}"),
)


def table_rows(metrics: Metrics) -> list[tuple[str, str, str, str, str]]:
    """Rows of (what, teacher, student, ratio or difference, held-out real images) as text; a dash where there is no value."""
    held_out = metrics["held_out"]
    return [
        (
            f"{name} ({feature_name(metrics)})" if key in FEATURE_MEASURES else name,
            write(form, metrics["teacher"].get(key)),
            write(form, metrics["student"].get(key)),
            compared(key, metrics["ratio"]),
            write(form, held_out.get(key)),
        )
        for key, name, form in ROWS
    ]


def feature_name(metrics: Metrics) -> str:
    """The extractor as it stands beside every figure that was measured with it."""
    return f"{metrics['protocol']['extractor']['name']} features"


def write(form: str, value: object) -> str:
    """`value` written by `form`, a dash for None."""
    return "-" if value is None else form.format(value)


def compared(key: str, ratio: dict[str, float]) -> str:
    """The ratio of one row, for FID the difference; the measured time with the predicted one behind it, where there is one."""
    if key == "fid":
        return f"{ratio['fid_difference']:+.4g}"
    if key == "milliseconds":
        predicted = f" (predicted {ratio['time_predicted']:.3f})" if "time_predicted" in ratio else ""
        return f"x {ratio['time']:.3f}{predicted}"
    return f"x {ratio[key]:.3f}" if key in ratio else "-"


def measured_with(protocol: Protocol) -> str:
    """One line that says what the figures were measured with."""
    extractor = protocol["extractor"]
    reference = protocol["reference"]
    kind = "" if extractor["name"] == extractor["kind"] else f" ({extractor['kind']})"
    return (
        f"FID, KID, precision and recall: {protocol['samples']:,} samples each, {protocol['sampler']}, "
        f"{protocol['steps']} steps, seed {protocol['seed']}; features of {extractor['name']}{kind}; "
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
