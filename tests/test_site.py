# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What .ci/site.py does to pages before MkDocs sees them; `make docs` tests the site itself."""

import importlib.util
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest


ROOT = Path(__file__).parent.parent


@pytest.fixture
def site():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / ".ci/site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config():
    return SimpleNamespace(
        docs_dir=str(ROOT / "docs"), config_file_path=str(ROOT / "mkdocs.yml"), repo_url="https://host/owner/name"
    )


def test_every_page_is_in_the_navigation_once(site, config):
    sections = [section for entry in site.on_config(config).nav for section in entry.items()]
    assert [name for name, _ in sections[:3]] == ["Start", "Tutorials", "How-to"]
    groups = dict(sections)["How-to"]
    titles = ["Begin", "Ask", "Data", "Train", "Evaluate and publish", "Change the code"]
    assert [title for group in groups for title in group] == titles
    pages = {name: found for name, found in sections if name != "How-to"}
    for group in groups:
        pages |= group
    listed = [page for group in pages.values() for page in group]
    assert listed[0] == "index.md"
    assert sorted(listed) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md"))


def test_links_out_of_the_docs_lead_to_the_repository(site, config, caplog):
    file = SimpleNamespace(abs_src_path=str(ROOT / "docs/how-to/page.md"), src_uri="how-to/page.md")

    def render(text: str) -> str:
        return site.on_page_markdown(text, SimpleNamespace(file=file), config, None)

    blob = "https://host/owner/name/blob/main"
    assert (
        render("[a](../../examples/sft.py) [b](watch_a_run.md#x)")
        == f"[a]({blob}/examples/sft.py) [b](watch_a_run.md#x)"
    )
    assert render("[a](../../tests/test_docs.py#L3)") == f"[a]({blob}/tests/test_docs.py#L3)"
    assert render("[a](../../examples)") == "[a](https://host/owner/name/tree/main/examples)"
    assert render("[a](https://x.org) [b](#c)") == "[a](https://x.org) [b](#c)"
    code = "```python no-run\nx = '[a](../../README.md)'\n```\n"
    assert render(code) == code.replace(" no-run", "")
    with caplog.at_level(logging.WARNING, "mkdocs"):
        render("[a](../../none.py)")
    assert "a link '../../none.py' to nothing in the repository" in caplog.text
