"""The code samples and commands of README.md and docs/cli.md run, and all linked files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from run_cli import cli, write_logs

CHECKOUT = Path(__file__).resolve().parents[1]
README = (CHECKOUT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shown_commands(text: str) -> list[list[str]]:
    """Return the gru4rec-fast command lines of a page, split into arguments, without the program name."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("gru4rec-fast ")]


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a short demo in a folder and return the folder."""
    folder = tmp_path_factory.mktemp("readme")
    ran = cli("demo", "--sessions", "500", "--epochs", "1", "--out", folder / "demo_run")
    assert ran.exit_code == 0, ran.stderr
    return folder


@pytest.mark.parametrize("i", range(len(blocks(README, "python"))))
def test_python_samples_run(demo_folder: Path, monkeypatch: pytest.MonkeyPatch, i: int) -> None:
    monkeypatch.chdir(demo_folder)
    exec(compile(blocks(README, "python")[i], f"README.md, python block {i + 1}", "exec"), {})


def test_the_readme_has_two_python_samples() -> None:
    assert len(blocks(README, "python")) == 2


def test_the_commands_of_the_readme_run(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_folder)
    # The commands with --seed need real logs; another test runs them on a small log.
    commands = [command for command in shown_commands(README) if "--seed" not in command]
    assert [command[0] for command in commands] == ["train", "evaluate", "recommend", "info"]
    for command in commands:
        ran = cli(*command)
        assert ran.exit_code == 0, ran.stderr


def test_the_accuracy_commands_run_on_a_small_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the commands for one epoch on a small log, which is written under the names of the real logs."""
    monkeypatch.chdir(tmp_path)
    (accuracy_section,) = re.findall(r"<!-- accuracy -->(.*?)^## ", README, re.DOTALL | re.MULTILINE)
    commands = shown_commands(accuracy_section)
    assert len(commands) == 2
    write_logs(tmp_path)
    for command in commands:
        log, test = command[1], command[command.index("--test") + 1]
        Path(log).parent.mkdir()
        for path, name in ((log, "train.tsv"), (test, "test.tsv")):
            Path(path.removesuffix(".gz")).write_text((tmp_path / name).read_text())
        ran = cli(*[word.removesuffix(".gz") for word in command], "--n-epochs", "1", "--threads", "1")
        assert ran.exit_code == 0, ran.stderr
        assert "conservative ties" in ran.stdout


def test_the_commands_of_the_cli_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_logs(tmp_path)
    page = (CHECKOUT / "docs/cli.md").read_text()
    (parameters,), (session,) = blocks(page, "toml"), blocks(page, "json")
    Path("parameters.toml").write_text(parameters)
    section_on_sessions = page.partition("## Graph models")[0]
    # Ten days of sessions.
    clicks = [f"{v},p{(7 * v + i) % 60},{86_400 * (v // 20) + 60 * v + i}" for v in range(200) for i in range(4)]
    Path("clicks.csv").write_text("\n".join(["visitor,product,ts", *clicks]))
    commands = [*shown_commands(section_on_sessions), ["train", "train.tsv", "--params", "parameters.toml"]]
    assert [command[0] for command in commands] == ["prepare", "train", "train", "train"]
    for command in commands:
        options = ["--n-epochs", "1", "--threads", "1", "--out", "run"] if command[0] == "train" else []
        ran = cli(*command, *options)
        assert ran.exit_code == 0, ran.stderr
    Path("sessions.jsonl").write_text(session)
    assert "the model was not trained on item 214536502" in cli("recommend", "run", "sessions.jsonl").error_line


def test_the_graph_commands_of_the_cli_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    interactions = [f"{user},{(7 * user + item) % 60}" for user in range(40) for item in range(12)]
    Path("interactions.csv").write_text("\n".join(["user,item", *interactions]))
    Path("users.txt").write_text("3\n17\n")
    commands = shown_commands((CHECKOUT / "docs/cli.md").read_text().partition("## Graph models")[2])
    assert [command[0] for command in commands] == ["prepare", "train", "evaluate", "recommend", "info", "info"]
    for command in commands:
        ran = cli(*command, *(["--threads", "1"] if command[0] == "train" else []))
        assert ran.exit_code == 0, ran.stderr


@pytest.mark.parametrize("name", ["install-and-demo", "install-and-test"])
def test_each_install_command_that_ci_runs_is_one_line(name: str) -> None:
    """.ci/run runs the code block that follows an HTML comment with this name."""
    (block,) = re.findall(rf"^<!-- {name} -->\n```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert block.startswith('pip install "torch==')
    assert len(block.splitlines()) == 1


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/cli.md"])
def test_linked_files_exist(page: str) -> None:
    text = (CHECKOUT / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if not target.startswith("http")]
    assert targets
    missing = [target for target in targets if not ((CHECKOUT / page).parent / target).exists()]
    assert not missing, f"{page} links files that do not exist: {missing}"


def test_the_index_links_every_page() -> None:
    docs = CHECKOUT / "docs"
    index = (docs / "index.md").read_text()
    pages = [path.relative_to(docs).as_posix() for path in docs.rglob("*.md") if path.name != "index.md"]
    assert pages
    missing = [page for page in pages if f"({page})" not in index]
    assert not missing, f"docs/index.md has no link to {missing}: add a line to one of its tables"


def test_the_training_curve_is_a_small_png() -> None:
    picture = CHECKOUT / "docs/images/training_curve.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 150 * 1024
