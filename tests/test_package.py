# Copyright 2026 The transformers_valley authors. Apache-2.0 license.
"""What `pip install` brings: the files in the wheel and in the source distribution, built here."""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, and names in the source distribution without its topmost folder."""
    for needed in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(needed, reason=f"{needed}, which builds the package, is not installed")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    return zipfile.ZipFile(wheel), sources


def packaged(*packages: str) -> set[str]:
    """Every file of a package that git knows, as a wheel names it."""
    listed = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name.removeprefix("src/") for name in listed.stdout.splitlines()}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(built):
    wheel = set(built[0].namelist())
    expected = packaged("src/transformers_valley", "src/valley_cli")
    assert {"transformers_valley/chat_template.jinja", "transformers_valley/py.typed"} <= expected
    assert any(name.startswith("transformers_valley/evaluation/prompts/") for name in expected)
    assert any(name.startswith("transformers_valley/evaluation/metrics/") for name in expected)
    assert expected <= wheel


@pytest.mark.slow
def test_the_wheel_holds_what_the_command_reads_of_the_examples(built):
    wheel = set(built[0].namelist())
    for folder, there in (("configs", "recipes"), ("accelerate", "accelerate"), ("mixtures", "mixtures")):
        names = {f"valley_cli/{there}/{file.name}" for file in (ROOT / "examples" / folder).glob("*.yaml")}
        assert len(names) > 3 and names <= wheel
    assert {name.partition("/")[0] for name in wheel if ".dist-info" not in name} == {
        "transformers_valley",
        "valley_cli",
    }


@pytest.mark.slow
def test_links_and_pictures_of_the_readme_lead_to_the_repository_from_pypi(built):
    wheel, _ = built
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    page = email.message_from_bytes(wheel.read(metadata))
    assert page["Description-Content-Type"] == "text/markdown"
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", page.get_payload())
    assert len(targets) > 20 and all(target.startswith("https://") for _, target in targets)
    repository = "transformers-valley/transformers-valley"
    for kind, base in (
        ("", f"https://github.com/{repository}/blob/main/"),
        ("!", f"https://raw.githubusercontent.com/{repository}/main/"),
    ):
        ours = [target.removeprefix(base) for is_image, target in targets if is_image == kind and base in target]
        assert ours and all((ROOT / path.partition("#")[0]).exists() for path in ours)


@pytest.mark.slow
def test_the_source_distribution_builds_and_tests_itself(built):
    _, sources = built
    wanted = ["src", "tests", "examples", "docs", "Makefile", "mkdocs.yml", "requirements.lock"]
    listed = subprocess.run(["git", "ls-files", *wanted], cwd=ROOT, check=True, capture_output=True, text=True)
    assert set(listed.stdout.splitlines()) <= sources
    assert not any(name.startswith(("site/", "outputs/", ".venv", "dist/")) for name in sources)


def test_the_citation_names_the_version_and_whom_to_cite():
    import transformers_valley

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == transformers_valley.__version__
    assert {"title", "message", "authors", "repository-code"} <= citation.keys()
    assert citation["preferred-citation"].keys() >= {"type", "title", "authors", "year", "url"}


def test_a_tag_of_another_version_is_refused():
    import transformers_valley

    def check(tag: str):
        command = [sys.executable, ".ci/check_tag.py", tag]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert check(f"v{transformers_valley.__version__}").returncode == 0
    refused = check("v99.0")
    assert refused.returncode == 1 and "The tag v99.0 is of version 99.0" in refused.stderr


def test_issue_forms_ask_for_the_environment():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    fields = {field["id"]: field for field in form["body"]}
    assert "valley env" in fields["env"]["attributes"]["description"] and fields["env"]["validations"]["required"]
