"""The pages' tests read a page as its reader does, and refuse what they do not know how to run."""

from __future__ import annotations

import pytest
from documentation_pages import arguments_of, blocks, commands, snippets


TEXT = """a
```sh
hf-evcap env    # versions
hf-evcap caption a.jpg \\
    --model USER/b
```
```python
x
```
"""


@pytest.mark.parametrize("command", ["rm -rf /", "hf-evcap sing", "python train.py", "pip install hf_evcap"])
def test_unknown_commands_are_failures(command: str) -> None:
    with pytest.raises(ValueError, match="does not know"):
        arguments_of(command)


def test_a_page_is_read_as_its_reader_does() -> None:
    assert [language for language, _ in blocks(TEXT)] == ["sh", "python"]
    assert snippets(TEXT) == ["x\n"]
    assert commands(TEXT) == ["hf-evcap env", "hf-evcap caption a.jpg --model USER/b"]
    assert arguments_of(commands(TEXT)[1], {"USER": "alice"}) == ["caption", "a.jpg", "--model", "alice/b"]
    launch = 'accelerate launch --config_file "$(hf-evcap configs accelerate/cpu)" -m hf_evcap.cli.main train --bf16'
    assert arguments_of(launch, added={"train": ["--max_steps", "2"]}) == ["train", "--bf16", "--max_steps", "2"]
