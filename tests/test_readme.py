"""The samples and commands of README.md, docs/cli.md, data.md and evaluation.md run, and all linked files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from run_cli import SMALL, cli, write_logs

from gru4rec_fast import GRU4Rec, data
from gru4rec_fast.data.sessions.synthetic import markov_events

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


def test_the_examples_of_the_data_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ratings.dat").write_bytes("1::ä::5::978300760\n2::b::3::978302109\n2::ä::4::978298413\n".encode("latin-1"))
    shop = [f"{s},{i},{s + 1:02}.03.2024,{i}:30" for s in range(9) for i in range(3)]
    Path("shop.csv").write_text("\n".join(["SessionId,ItemId,day,clock", *shop]))
    visits = [f"{u},{i},2024-03-{day:02} 10:{10 * i}:00 UTC" for day in (1, 5) for u in range(4) for i in range(3)]
    Path("visits.csv").write_text("\n".join(["UserId,ItemId,Time", *visits]))
    (section,) = re.findall(
        r"^## Logs of other forms.*?(?=^## )", (CHECKOUT / "docs/data.md").read_text(), re.DOTALL | re.MULTILINE
    )
    namespace: dict[str, Any] = {name: getattr(data, name) for name in data.__all__}
    sizes = []
    for example in blocks(section, "python"):
        exec(compile(example, "docs/data.md", "exec"), namespace)
        sizes.append(str(namespace.pop("store", None) or namespace.pop("graph")))
    assert sizes == [
        "InteractionGraph(2 users, 2 items, 3 edges)",
        "SessionStore(2 sessions, 5 events, 3 items)",
        "SessionStore(9 sessions, 27 events, 3 items)",
        "SessionStore(8 sessions, 24 events, 3 items)",
        "InteractionGraph(2 users, 2 items, 4 edges)",
        "InteractionGraph(2 users, 3 items, 2 edges)",
    ]
    printed = []
    for command in shown_commands(section):
        ran = cli(*command)
        assert ran.exit_code == 0, ran.stderr
        printed.append(ran.stdout)
    assert len(printed) == 5
    assert printed[0].startswith("graph/train: 2 users, 2 items, 3 edges")
    assert printed[1].startswith("shop/train: 9 sessions, 27 events, 3 items")
    assert printed[2].startswith("visits/train: 4 sessions, 12 events") and "visits/test: 4 sessions" in printed[2]
    assert printed[3].startswith("liked/train: 2 users, 1 items, 2 edges")
    assert printed[4].startswith("split/train: 2 users, 2 items, 2 edges") and "split/test: " in printed[4]


def test_the_examples_of_the_evaluation_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is run from the section on targets to that on baselines."""
    monkeypatch.chdir(tmp_path)
    write_logs(tmp_path)
    events = markov_events(300, 40, seed=2)
    events["Time"] = events["SessionId"] * 86_400 // 40 + events["Time"] % 1000  # a week and a half
    rows = zip(*(column.tolist() for column in events.values()), strict=True)
    Path("clicks.tsv").write_text("\n".join("\t".join(map(str, row)) for row in [tuple(events), *rows]))
    for out, seed in (("run", "0"), ("other_run", "1")):
        ran = cli("train", "train.tsv", "-ps", SMALL, "--seed", seed, "--out", out, "--threads", "1")
        assert ran.exit_code == 0, ran.stderr
    page = (CHECKOUT / "docs/evaluation.md").read_text()
    (sections,) = re.findall(r"^## Targets.*?(?=^## Baselines)", page, re.DOTALL | re.MULTILINE)
    printed = {}
    for command in shown_commands(sections):
        ran = cli(*command)
        assert ran.exit_code == 0, ran.stderr
        printed[" ".join(command)] = ran.stdout
    assert len(printed) == 12
    assert "targets (remaining)" in printed["evaluate run test.tsv --targets remaining --cutoffs 5,20"]
    assert "windows/test_2" in printed["prepare clicks.tsv windows --split last-day,windows=2,window-days=3"]
    assert "metrics by popularity" in printed["evaluate run test.tsv --by popularity"]
    assert "coverage@10" in printed["evaluate run test.tsv --beyond-accuracy --cutoffs 10"]
    (sampled,) = (output for command, output in printed.items() if "--negatives" in command)
    assert "sampled: 20 negatives by popularity" in sampled
    assert "p_value" in printed["compare first.parquet second.parquet --n-resamples 500"]
    namespace: dict[str, Any] = {"GRU4Rec": GRU4Rec}
    examples = blocks(sections, "python")
    assert len(examples) == 6
    for example in examples:
        exec(compile(example, "docs/evaluation.md", "exec"), namespace)
    # A store of a leave-one-out split is evaluated on its last events, also as validation data.
    ran = cli("train", "last/train_tr", "--validation", "last/train_valid", "-ps", SMALL)
    assert ran.exit_code == 0, ran.stderr
    ran = cli("train", "last/train", "--test", "last/test", "-ps", SMALL, "--out", "last_run")
    assert ran.exit_code == 0 and "targets (last)" in ran.stdout, ran.stderr
    assert "leave-one-out split" in cli("evaluate", "last_run", "last/test", "--targets", "next").error_line


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
