#!/usr/bin/env python3
"""
Makes a site of docs/ and README.md, with an API reference from the docstrings, by pdoc.

    pip install "hf_evcap[docs]"

Usage: scripts/build_docs.py [FOLDER]   (default: build/docs)

Everything that is wrong is an error: a warning of pdoc or Python, a link to a file or heading that is not there, a
reference such as [`EVCapConfig`] in a docstring to something that does not exist.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import warnings
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "hf_evcap"
# What others import, in the order of the reference's index.
MODULES = [
    "hf_evcap",
    "hf_evcap.caption_data",
    "hf_evcap.memory_building",
    "hf_evcap.datastore_building",
    "hf_evcap.training.caption_trainer",
    "hf_evcap.training.feature_cache",
    "hf_evcap.training.fine_tuning.training_arguments",
    "hf_evcap.training.fine_tuning.retrieval_in_training",
    "hf_evcap.evaluation",
    "hf_evcap.conversion",
    "hf_evcap.planning",
    "hf_evcap.hub.ready_repo",
    "hf_evcap.hub.model_card",
    "hf_evcap.hub.card_facts",
]
REFERENCE = re.compile(r"\[`(~?)([\w.]+)`\]")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
OTHERS = ("accelerate", "datasets", "evaluate", "huggingface_hub", "peft", "torch", "transformers")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body{{max-width:50rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui}} pre{{background:#f6f6f6;padding:.7rem;
overflow:auto}} code{{font-size:.9em}} table{{border-collapse:collapse}}
td,th{{border:1px solid #ddd;padding:.2rem .6rem}} nav{{font-size:.9rem}} .codehilite span.c1{{color:#777}}</style>
<nav>{links}</nav>
{body}
<script type="module">
const drawn = document.querySelectorAll("pre.mermaid");
if (drawn.length) (await import("https://cdn.jsdelivr.net/npm/mermaid@11/dist/mermaid.esm.min.mjs")).default.run();
</script></html>
"""


def defined_names(package: Path) -> set[str]:
    """Everything that the package defines: modules, functions, classes, and `Class.member`."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], owner: str) -> None:
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                names.update({node.name, f"{owner}{node.name}"})
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        names.update({target.id, f"{owner}{target.id}"})
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names.update(alias.asname or alias.name for alias in node.names)

    for file in package.rglob("*.py"):
        names.update({file.stem, file.parent.name})
        visit(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return names


def docstrings(package: Path) -> list[tuple[str, str]]:
    """Docstrings of the package with the places where they stand."""
    found = []
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
                name = getattr(node, "name", "")
                found.append((f"{file.relative_to(package.parent)}:{getattr(node, 'lineno', 1)} {name}".strip(), text))
    return found


def exists(path: str) -> bool:
    """Whether a dotted name of another library can be imported; libraries that are not installed count."""
    parts = path.split(".")
    try:
        found = importlib.import_module(parts[0])
    except ImportError:
        return True
    for number, part in enumerate(parts[1:], 1):
        if not hasattr(found, part):
            try:
                found = importlib.import_module(".".join(parts[: number + 1]))
                continue
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def broken_references(package: Path) -> list[str]:
    """References of docstrings to what is not there."""
    names, problems = defined_names(package), []
    for place, text in docstrings(package):
        for _, target in REFERENCE.findall(text):
            if target.split(".")[0] in OTHERS:
                known = exists(target)
            else:
                parts = target.split(".")
                known = parts[-1] in names if len(parts) == 1 else {".".join(parts[-2:]), parts[-1]} & names
            if not known:
                problems.append(f"{place}: [`{target}`] is nowhere defined")
    return problems


def headings(text: str) -> set[str]:
    """Anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(pages: dict[str, Path]) -> list[str]:
    """Relative links of pages to files or headings that are not there."""
    problems = []
    for page in pages.values():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in LINK.findall(text):
            if re.match(r"\w+:", link):
                continue
            file, _, heading = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists():
                problems.append(f"{page.relative_to(ROOT)}: there is no {file}")
            elif heading and heading not in headings(target.read_text(encoding="utf-8")):
                problems.append(f"{page.relative_to(ROOT)}: {target.name} has no heading {heading}")
    return problems


def as_markdown(docstring: str, *_: object) -> str:
    """A docstring of the package in the form that pdoc renders: references as code, which it links, and lists."""
    from pdoc.docstrings import google

    text = REFERENCE.sub(lambda found: f"`{found[2].split('.')[-1] if found[1] else found[2]}`", docstring)
    return google(text)


def build_reference(output: Path) -> None:
    """The API reference."""
    import importlib

    import pdoc.docstrings
    import pdoc.render

    for module in map(importlib.import_module, MODULES):
        for name in getattr(module, "__all__", ()):  # of some packages imported when first used
            setattr(module, name, getattr(module, name))
    pdoc.docstrings.convert = as_markdown
    pdoc.render.configure(docformat="google", show_source=False, footer_text="hf_evcap")
    pdoc.pdoc(*MODULES, output_directory=output)


def build_pages(pages: dict[str, Path], output: Path) -> None:
    """The pages, with a line of links on each."""
    import markdown2

    links = " · ".join(f'<a href="{name}.html">{name}</a>' for name in pages)
    links += ' · <a href="api/index.html">API reference</a>'
    for name, page in pages.items():
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"\]\((?:\.\./)?([\w-]+)\.md((?:#[\w-]+)?)\)", r"](\1.html\2)", text)
        text = re.sub(r"`docs/([\w-]+)\.md`", r"[\1](\1.html)", text)
        body = markdown2.markdown(
            text, extras=["fenced-code-blocks", "tables", "header-ids", "code-friendly", "mermaid"]
        )
        body = re.sub(r'<pre class="mermaid">', '<pre class="mermaid" style="background:none">', body)
        title = re.search(r"^# (.+)$", text, flags=re.MULTILINE)[1]
        (output / f"{name}.html").write_text(PAGE.format(title=title, links=links, body=body), encoding="utf-8")


def main() -> int:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "docs")
    try:
        import pdoc  # noqa: F401
    except ImportError:
        sys.exit('The documentation is made by pdoc: pip install "hf_evcap[docs]"')
    pages = {"index": ROOT / "README.md", **{page.stem: page for page in sorted((ROOT / "docs").glob("*.md"))}}
    problems = broken_links(pages) + broken_references(PACKAGE)
    if problems:
        sys.exit("\n".join(problems))
    output.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # pdoc's
        # Fields that configurations inherit are annotated with what transformers' module imports, not ours.
        annotation = r"Error parsing type annotation .* for hf_evcap\.\w+Config\.__init__\. Import of Literal failed"
        warnings.filterwarnings("ignore", annotation, UserWarning)
        build_reference(output / "api")
    build_pages(pages, output)
    print(f"{len(pages)} pages and the reference of {len(MODULES)} modules in {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
