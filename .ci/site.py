# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What mkdocs.yml cannot say of the site: the order of its pages, and links out of docs/.

MkDocs calls these functions. In go pages as they are in the repository; what is wrong with a link is logged as a
warning, which ends a strict build.
"""

import logging
import os
import re
import textwrap
from pathlib import Path


SECTIONS = {"tutorials": "Tutorials", "how-to": "How-to", "reference": "Reference", "explanation": "Explanation"}
LINK = re.compile(r'(\]\(|(?:src|href)=")(?![a-z]+:|[#/])([^)\s"#]+)')
HEADING = re.compile(r"^\*\*(.+)\*\*$", re.MULTILINE)
FENCE = re.compile(r"^( *)(`{3,})([^\n]*)\n.*?^\1\2`*$", re.MULTILINE | re.DOTALL)
# Sections of which a reader wants one: tabs on the site, and read one after the other in the repository.
TABS = re.compile(r"^<!-- tabs -->\n(.*?)^<!-- /tabs -->$", re.MULTILINE | re.DOTALL)

log = logging.getLogger("mkdocs.hooks.site")


def on_config(config):
    """
    Make the navigation: a section for each folder, its pages in the order in which docs/index.md links them.

    The how-tos are many, and stand under the headings that they have there.
    """
    docs = Path(config.docs_dir)
    _, *groups = HEADING.split((docs / "index.md").read_text())
    linked = [path for _, path in LINK.findall("".join(groups))]

    def pages(folder: str) -> list[str]:
        found = [path.relative_to(docs).as_posix() for path in (docs / folder).glob("*.md")]
        return sorted(found, key=lambda page: (page != "index.md", _place(linked, page), page))

    folders = {path.name for path in docs.iterdir() if list(path.glob("*.md"))}
    order = [*SECTIONS, *sorted(folders - SECTIONS.keys())]  # a folder that has no title here still has its place
    sections = {name: pages(name) for name in order if name in folders}
    grouped = [
        {title: [page for page in sections["how-to"] if f"]({page})" in links]}
        for title, links in zip(groups[::2], groups[1::2], strict=True)
    ]
    sections["how-to"] = [group for group in grouped if all(group.values())]
    titled = [{SECTIONS.get(name, name.capitalize()): entries} for name, entries in sections.items()]
    config.nav = [{"Start": pages(".")}, *titled]
    return config


def _place(linked: list[str], page: str) -> int:
    return linked.index(page) if page in linked else len(linked)


def on_page_markdown(markdown, page, config, files):
    """Lead links to what is in the repository but not on the site there, and name the language of code alone."""

    def lead(match: re.Match) -> str:
        target = os.path.normpath(Path(page.file.abs_src_path).parent / match[2])
        root = Path(config.config_file_path).parent
        if Path(target).is_relative_to(config.docs_dir):
            return match[0]  # MkDocs checks these
        if not Path(target).is_relative_to(root) or not os.path.exists(target):
            log.warning(
                "Doc file '%s' contains a link '%s' to nothing in the repository.", page.file.src_uri, match[2]
            )
        kind = "tree" if os.path.isdir(target) else "blob"
        return f"{match[1]}{config.repo_url.rstrip('/')}/{kind}/main/{os.path.relpath(target, root)}"

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        head = f"{fence[1]}{fence[2]}{fence[3]}"
        language = f"{fence[1]}{fence[2]}{fence[3].partition(' ')[0]}"  # `python no-run` is a word for tests
        parts += [LINK.sub(lead, markdown[end : fence.start()]), language, fence[0].removeprefix(head)]
        end = fence.end()
    return TABS.sub(_to_tabs, "".join([*parts, LINK.sub(lead, markdown[end:])]))


def _to_tabs(match: re.Match) -> str:
    """Sections between `<!-- tabs -->` and `<!-- /tabs -->` in the form of pymdownx.tabbed."""
    _, *parts = re.split(r"^### (.*)\n", match[1], flags=re.MULTILINE)
    tabs = zip(parts[::2], parts[1::2], strict=True)
    return "\n".join(f'=== "{title}"\n\n{textwrap.indent(text, "    ")}' for title, text in tabs)


def on_page_content(html, page, config, files):
    """Show docstrings in transformers' form: [`name`] becomes a link to where the same page describes it, and types
    lose their marks."""
    anchors = {anchor.rpartition(".")[2]: anchor for anchor in re.findall(r'id="(transformers_valley\.[^"]+)"', html)}

    def link(match: re.Match) -> str:
        name = match[1].strip("~").rpartition(".")[2]
        code = f"<code>{name}</code>"
        return f'<a href="#{anchors[name]}">{code}</a>' if name in anchors else code

    html = re.sub(r"\(<code>([^<]*`[^<]*)</code>", lambda match: "(" + re.sub("[`*]", "", match[1]), html)
    return re.sub(r"\[<code>([\w.~]+)</code>\]", link, html)


def on_post_page(output, page, config):
    """Keep the theme from asking GitHub, for each reader, how many stars the repository has."""
    return output.replace(' data-md-component="source"', "")
