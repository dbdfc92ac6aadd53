"""The page that a metric's Space shows: inputs as JSON, results as JSON, and the metric's card."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import evaluate


def load_test_cases(folder: Path) -> list[dict[str, Any]]:
    """
    Read a metric's example cases.

    Args:
        folder (`Path`):
            The metric's folder, with a `tests.py` that defines `test_cases`.

    Returns:
        `list[dict]`: For each case the arguments of `compute` and, under `result`, what it should give.
    """
    spec = importlib.util.spec_from_file_location(f"hf_evcap_cases_{folder.name}", folder / "tests.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"There are no example cases at {folder / 'tests.py'}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.test_cases)


def card_text(folder: Path) -> str:
    """Text of a metric's card without the metadata in front."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return text.split("---\n", 2)[-1] if text.startswith("---\n") else text


def compute_from_json(metric: evaluate.Metric, arguments: str) -> dict[str, Any]:
    """
    Compute a metric from what a visitor typed.

    Args:
        metric (`evaluate.Metric`):
            The loaded metric.
        arguments (`str`):
            A JSON object with the arguments of `compute`.

    Raises:
        ValueError: If `arguments` is no JSON object.
    """
    try:
        values = json.loads(arguments)
    except ValueError as error:
        raise ValueError(f"The input is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"The input must be a JSON object with the arguments of `compute`, got {type(values).__name__}."
        )
    return metric.compute(**values)


def build(folder: str | Path, name: str) -> Any:
    """
    Build a metric's page.

    Args:
        folder (`str` or `Path`):
            Folder with the metric's script, card and example cases.
        name (`str`):
            The metric's name.

    Returns:
        `gradio.Blocks`: The page, to be launched.

    Raises:
        ImportError: If gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("A metric's Space needs gradio: pip install gradio.") from error

    folder = Path(folder)
    metric = evaluate.load(str(folder / f"{name}.py"))

    def compute(*values: Any) -> dict[str, Any]:
        try:
            if name == "clip_score":
                image, caption = values
                return metric.compute(predictions=[caption], images=[image])
            return compute_from_json(metric, values[0])
        except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title=name) as page:
        with gradio.Row():
            if name == "clip_score":
                inputs = [gradio.Image(type="pil", label="image"), gradio.Textbox(label="caption")]
            else:
                case = {key: value for key, value in load_test_cases(folder)[0].items() if key != "result"}
                example = json.dumps(case, indent=2, ensure_ascii=False)
                inputs = [gradio.Code(value=example, language="json", label="arguments of compute")]
            output = gradio.JSON(label="result")
        gradio.Button("Compute", variant="primary").click(compute, inputs, output)
        gradio.Markdown(card_text(folder))
    return page
