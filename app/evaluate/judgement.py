"""What a model's last verification says of the distance between two faces."""

from __future__ import annotations

from app import storage
from app.parsing import ParseError, parse_json_object
from app.weights import STATE_DICTS


def verification_folder(model: str) -> str:
    """Where reports of a model are: below the run folder, or beside a file."""
    is_inside = model.endswith((".onnx", *STATE_DICTS)) or model.rstrip("/").endswith("checkpoints")
    folder = model.rstrip("/").rpartition("/")[0] or "." if is_inside else model
    return storage.join(folder, "verification")


def judge(model: str, distance: float) -> list[str]:
    """A line for each set of the model's last report: whether its threshold takes the two for one person.

    Args:
        model: URL of the model.
        distance: squared, between unit embeddings.

    Returns:
        No line where the model was not verified, or its report cannot be read: the distance stands for itself.
    """
    url = storage.join(verification_folder(model), "report.json")
    try:
        if not storage.exists(url):
            return []
        sets = parse_json_object(storage.read_bytes(url), storage.redact(url)).get("sets")
    except (storage.StorageError, ParseError):
        return []
    lines = []
    for name, result in sets.items() if isinstance(sets, dict) else ():
        threshold = result.get("threshold") if isinstance(result, dict) else None
        if isinstance(threshold, float | int):
            taken = "one person" if distance < threshold else "two people"
            cosine = 1 - threshold / 2
            lines.append(
                f"taken for {taken} by the threshold of {name}: cosine {cosine:.4f}, squared distance {threshold:.4f}"
            )
    return lines
