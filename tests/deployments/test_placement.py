"""Stages placed in work pools and in Slurm: each runs where it should, and the products stay the same bytes.

The Prefect server keeps its records in PostgreSQL where that is installed. Workers stand for machines: they have names,
pools and folders of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from deployments import servers
from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.pipeline import VERBS
from llm_core.settings.placement import PlacementSettings, PlaceSettings
from tasks import children, experiments, params, pools, slurm, there
from tasks.freshness import Freshness
from tasks.workspace import Workspace

pytestmark = pytest.mark.timeout(1500)
PATIENCE_S = 600.0
DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
SCRIPT = Path(__file__).with_name("placed_flow.py")
OWN = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
SOURCES = {"acquire": {"sources": [{"kind": "problems", "name": "problems", "count": 50}]}}

FAKE_SBATCH = """\
#!{python}
# As Slurm's own: prints the number, waits, ends with the job's exit code. Options of the command line are written down.
import os, subprocess, sys
place = next(i for i, word in enumerate(sys.argv) if word.endswith(".sbatch"))
open({options!r}, "w").write("\\n".join(sys.argv[1:place]))
print("17;cluster", flush=True)
out = next(word for word in sys.argv if word.startswith("--output=")).partition("=")[2]
environment = os.environ | {{"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": os.getcwd(), "SLURM_CPUS_PER_TASK": "1"}}
with open(out, "ab") as log:
    sys.exit(subprocess.run(["bash", *sys.argv[place:]], env=environment, stdout=log, stderr=log).returncode)
"""


class Server:
    """A Prefect server and the environment that leads to it; `postgres` is where its records are, if they are there."""

    def __init__(self, folder: Path, postgres: str | None) -> None:
        self.folder, self.postgres = folder, postgres
        self.environment = {name: value for name, value in os.environ.items() if name not in OWN}

    def ask(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        """A call of Prefect's API; a server that is just starting or busy is asked again."""
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            url = f"{self.environment['PREFECT_API_URL']}/{path}"
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return json.loads(response.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.3)

    def pool(self, name: str, limit: int | None = None) -> None:
        self.ask("work_pools/", {"name": name, "type": "process", "concurrency_limit": limit})

    def worker(self, pool: str, name: str) -> subprocess.Popen[bytes]:
        """A worker in a folder of its own, as on another machine."""
        folder = self.folder / name
        folder.mkdir()
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name]
        environment = self.environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
        with open(folder / "worker.log", "wb") as log:
            return subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=_heed_interrupts
            )

    def online(self, pool: str) -> set[str]:
        found = self.ask(f"work_pools/{pool}/workers/filter", {})
        return {worker["name"] for worker in found if worker["status"] == "ONLINE"}

    def run(self, *arguments: str | Path, **more: str) -> subprocess.Popen[str]:
        """The script of these tests, as a process of its own."""
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        environment = self.environment | more
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _heed_interrupts() -> None:
    """Prefect ends its worker by SIGINT, which a shell lets its background jobs, and so their children, ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(reached: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module")
def where_records_are(request: pytest.FixtureRequest) -> str | None:
    """PostgreSQL, or None where it is not installed: the server then keeps its records in SQLite."""
    try:
        return str(request.getfixturevalue("postgres"))
    except pytest.skip.Exception:
        return None


@pytest.fixture(scope="module")
def server(where_records_are: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"), where_records_are)
    if where_records_are:
        url = f"postgresql+asyncpg://{where_records_are}/prefect"
        made.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    with pytest.MonkeyPatch.context() as patch:
        for name in OWN:
            patch.delenv(name, raising=False)
        if where_records_are:
            patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", url)
        patch.setattr(servers, "SERVERS", (servers.PREFECT,))
        patch.setattr(servers, "PATIENCE_S", PATIENCE_S)
        servers.ensure(made.folder)
        made.environment |= {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_HOME")}
    yield made
    servers.stop(made.folder, (servers.PREFECT,))


@pytest.fixture(scope="module")
def machines(server: Server) -> Iterator[Server]:
    """Two pools: one of a worker, one of two workers that together may do one run at a time."""
    server.pool("cpu", limit=1)
    server.pool("gpu")
    names = {"cpu-1": "cpu", "cpu-2": "cpu", "gpu-1": "gpu"}
    workers = [server.worker(pool, name) for name, pool in names.items()]
    try:
        for pool in set(names.values()):
            wanted = {name for name, where in names.items() if where == pool}
            until(lambda pool=pool, wanted=wanted: server.online(pool) == wanted)
        yield server
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


def space_with(root: Path, folder: Path, placement: dict[str, Any] | None) -> Workspace:
    content = params.read(root / "params.yaml") | SOURCES | ({"placement": placement} if placement else {})
    return experiments.make_workspace(root, folder, params.dump(content), cache=folder / ".dvc" / "cache")


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out + err


@pytest.fixture(scope="module")
def plain(root: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same work without any placement."""
    space = space_with(root, tmp_path_factory.mktemp("plain"), None)
    code, told = finish(server.run("data", space.root))
    assert code == 0, told[-4000:]
    return space


@pytest.fixture(scope="module")
def placed(machines: Server, root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Workspace]:
    """Two builds at once, whose first stages may only run one at a time, on whichever of two machines."""
    folder = tmp_path_factory.mktemp("placed")
    where = {"acquire": {"pool": "cpu"}, "clean": {"pool": "gpu"}}
    spaces = [space_with(root, folder / name, where) for name in ("one", "two")]
    for process in [machines.run("data", space.root) for space in spaces]:
        code, told = finish(process)
        assert code == 0, told[-4000:]
        assert re.search("worker cpu-[12] of the pool cpu", told), "the build shows where its stage runs"
    return spaces


def test_each_stage_runs_on_a_worker_of_its_pool_and_makes_the_same_bytes(
    placed: list[Workspace], plain: Workspace
) -> None:
    for space in placed:
        for verb, worker in (("acquire", "cpu-[12] of the pool cpu"), ("clean", "gpu-1 of the pool gpu")):
            first = space.log(verb).read_text().splitlines()[0]
            assert re.fullmatch(rf"{verb} runs on \S+, worker {worker}", first)
        for product in ("raw", "corpus"):
            assert artifacts.digest(space.product(product)) == artifacts.digest(plain.product(product))


def test_another_placement_makes_nothing_stale(placed: list[Workspace]) -> None:
    space = placed[0]
    without = params.read(space.root / "params.yaml")
    del without["placement"]
    (space.root / "params.yaml").write_text(params.dump(without))
    fresh = Freshness(Workspace.at(space.root))
    assert not fresh.why_stale("acquire")
    assert not fresh.why_stale("clean")


def test_two_workers_of_a_pool_keep_its_limit(placed: list[Workspace], machines: Server) -> None:
    if machines.postgres is None:
        pytest.skip("the limits are to hold on a PostgreSQL-backed server; there is no PostgreSQL here")
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(f"postgresql://{machines.postgres}/prefect") as connection:
        runs = connection.execute(
            "SELECT r.start_time, r.end_time FROM flow_run r JOIN work_queue q ON q.id = r.work_queue_id "
            "JOIN work_pool p ON p.id = q.work_pool_id WHERE p.name = 'cpu' ORDER BY r.start_time"
        ).fetchall()
    assert len(runs) == len(placed) == 2
    assert runs[0][1] <= runs[1][0], f"they ran at the same time: {runs}"


def test_a_pool_without_a_worker_is_one_sentence_in_time(server: Server, root: Path, tmp_path: Path) -> None:
    server.pool("empty")
    space = space_with(root, tmp_path / "empty", {"acquire": {"pool": "empty"}, "wait_seconds": 2})
    code, told = finish(server.run("data", space.root))
    assert code == 2
    sentence = "placement.acquire.pool: no worker of the pool 'empty' is online, and none came within 2 s; start one"
    assert sentence in told
    wanted = {"work_pools": {"name": {"any_": ["empty"]}}}
    states = {run["state_type"] for run in server.ask("flow_runs/filter", wanted)}
    assert states <= {"CANCELLED", "CANCELLING"}, "the run would be taken up by the next worker"


def test_a_global_limit_holds_across_machines(server: Server) -> None:
    """Processes that know of each other only by the server take turns."""
    if server.postgres is None:
        pytest.skip("the limits are to hold on a PostgreSQL-backed server; there is no PostgreSQL here")
    server.ask("v2/concurrency_limits/", {"name": "gpu", "limit": 1})
    times = []
    for process in [server.run("slots", "1.0") for _ in range(2)]:
        code, told = finish(process)
        assert code == 0, told[-2000:]
        times.append(next(tuple(map(float, line.split())) for line in told.splitlines() if line[:1].isdigit()))
    times.sort()
    for (_, ended), (began, _) in itertools.pairwise(times):
        assert ended <= began, f"two held the one slot: {times}"


@pytest.fixture
def sbatch(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with an sbatch that runs the job at once."""
    programs, options = tmp_path / "bin", str(tmp_path / "options")
    programs.mkdir()
    (programs / "sbatch").write_text(FAKE_SBATCH.format(python=sys.executable, options=options))
    (programs / "sbatch").chmod(0o755)
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def test_a_stage_runs_as_a_job_of_slurm(
    server: Server, plain: Workspace, root: Path, tmp_path: Path, sbatch: dict[str, str]
) -> None:
    space = space_with(root, tmp_path / "slurm", {"clean": {"slurm": ["--nodes=1", "--time=00:10:00"]}})
    code, told = finish(server.run("data", space.root, **sbatch))
    assert code == 0, told[-4000:]
    assert space.log("clean").read_text().startswith("clean runs on ")
    assert "job 17 of Slurm" in space.log("clean").read_text().splitlines()[0]
    assert "is job 17 of Slurm" in told
    given = (tmp_path / "options").read_text().splitlines()
    assert given[:2] == ["--wait", "--parsable"]
    assert given[-2:] == ["--nodes=1", "--time=00:10:00"]
    assert artifacts.digest(space.product("corpus")) == artifacts.digest(plain.product("corpus"))


def test_a_job_that_fails_fails_the_stage_with_its_own_sentence(
    server: Server, root: Path, tmp_path: Path, sbatch: dict[str, str]
) -> None:
    space = space_with(root, tmp_path / "slurm", {"acquire": {"slurm": []}})
    content = params.read(space.root / "params.yaml")
    content["acquire"]["sources"] = [{"kind": "files", "name": "mine", "paths": ["nowhere/at/all"]}]
    (space.root / "params.yaml").write_text(params.dump(content))
    code, told = finish(server.run("data", space.root, **sbatch))
    assert code == 2
    assert "bad input: " in told
    assert "nowhere/at/all" in told.partition("bad input: ")[2].splitlines()[0]
    assert space.log("acquire").read_text().startswith("acquire runs on "), "it failed there, not here"


def test_the_script_of_a_job_is_valid_for_the_shell(root: Path) -> None:
    script = root / "deployments" / "slurm" / "stage.sbatch"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert "tasks.there" in script.read_text()


def test_the_worker_of_kubernetes_fits_the_jobs(root: Path) -> None:
    """What no cluster was there to say: the names of the manifest agree with each other and with the jobs' template."""
    folder = root / "deployments" / "kubernetes"
    found = {each["kind"]: each for each in yaml.safe_load_all((folder / "worker.yaml").read_text())}
    template = json.loads((folder / "base-job-template.json").read_text())
    assert set(found) == {"ServiceAccount", "Role", "RoleBinding", "PersistentVolumeClaim", "Deployment"}
    account = found["ServiceAccount"]["metadata"]["name"]
    pod = found["Deployment"]["spec"]["template"]
    assert pod["spec"]["serviceAccountName"] == account == found["RoleBinding"]["subjects"][0]["name"]
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    claim = found["PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == template["variables"]["properties"]["claim"]["default"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    jobs = next(rule for rule in found["Role"]["rules"] if rule["apiGroups"] == ["batch"])
    assert {"create", "delete", "watch"} <= set(jobs["verbs"])
    (worker,) = pod["spec"]["containers"]
    assert worker["command"][:3] == ["prefect", "worker", "start"]
    assert worker["image"].startswith(f"prefecthq/prefect:{metadata.version('prefect')}-")


def test_every_stage_can_be_placed() -> None:
    assert [*VERBS, "wait_seconds"] == list(PlacementSettings.model_fields)


@pytest.mark.parametrize(
    ("placement", "sentence"),
    [
        ({"clean": {}}, "placement.clean = {}: value error, name either a pool or slurm"),
        ({"clean": {"pool": "a", "slurm": []}}, "name either a pool or slurm"),
        ({"clean": {"slurm": [], "job": {"gpus": 1}}}, "job is for a pool"),
        ({"bake": {"pool": "a"}}, "placement.bake: no such parameter"),
        ({"wait_seconds": 0}, "placement.wait_seconds = 0"),
    ],
)
def test_a_wrong_placement_is_refused(placement: dict[str, Any], sentence: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        space_with(root, tmp_path, placement).configs()


def test_a_side_that_gives_no_sign_is_noticed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is gone ends its stage elsewhere; what it sees are changes, so clocks may differ."""
    order = children.Order(space_with(root, tmp_path, None), "clean")
    build, seen = children.Sign(order, "build"), children.Sign(order, "build")
    monkeypatch.setattr(children, "COUNT_S", 0.0)
    build.give()
    assert seen.silent_for() < 1.0
    first = seen.read()
    build.give()
    assert seen.read() != first
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 500.0)
    seen.silent_for()
    monkeypatch.setattr(time, "monotonic", lambda: now + 700.0)
    assert seen.silent_for() == pytest.approx(200.0)
    build.stop()
    assert seen.read() == children.STOP


class Endless:
    """A child that runs until it is ended."""

    ended = False

    def __init__(self, order: children.Order) -> None:
        Endless.ended = False

    def poll(self) -> int | None:
        return None

    def end(self) -> None:
        Endless.ended = True


@pytest.mark.parametrize("how", ["gone", "stop"])
def test_a_stage_whose_build_is_gone_or_has_had_enough_ends(
    how: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = children.Order(space_with(root, tmp_path, None), "clean")
    for path in (order.space.log("clean"), order.space.events("clean")):
        path.parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(children, "Here", Endless)
    monkeypatch.setattr(children, "LOST_S", 0.5 if how == "gone" else 1000.0)
    build = children.Sign(order, "build")
    build.give() if how == "gone" else build.stop()
    assert there.carry_out(order, "worker w of the pool p") == there.STOPPED
    assert Endless.ended
    assert order.space.log("clean").read_text().endswith(", worker w of the pool p\n")


class Client:
    """A Prefect server that has one pool, and a run in this state."""

    def __init__(self, state: str = "RUNNING", *, workers: int = 1, paused: bool = False) -> None:
        from prefect.client.schemas.objects import State, StateType

        self.state = State(type=StateType[state])
        self.workers, self.paused = workers, paused
        text = (DEPLOYMENTS / "kubernetes" / "base-job-template.json").read_text()
        named = {"name": "far", "base_job_template": json.loads(text)}
        self.pool = SimpleNamespace(**named, is_push_pool=False, is_managed_pool=False)

    def read_work_pools(self) -> Any:
        return [self.pool]

    def read_work_pool(self, name: str) -> Any:
        from prefect.exceptions import ObjectNotFound

        if name != "far":
            raise ObjectNotFound(Exception("404"))
        self.pool.is_paused = self.paused
        return self.pool

    def create_flow_from_name(self, name: str) -> str:
        return name

    def create_deployment(self, **_: Any) -> str:
        return "deployment"

    def read_workers_for_work_pool(self, *_: Any, **__: Any) -> list[int]:
        return [1] * self.workers

    def read_flow_run(self, _: Any) -> Any:
        return SimpleNamespace(state=self.state)

    def set_flow_run_state(self, _: Any, state: Any, force: bool = False) -> None:
        self.state = state


def placed_run(client: Client, root: Path, folder: Path, patch: pytest.MonkeyPatch) -> pools.PoolRun:
    patch.setattr(pools, "get_client", lambda **_: nullcontext(client))
    patch.setattr(pools, "run_deployment", lambda *_, **__: SimpleNamespace(id="run"))
    patch.setattr(pools, "ASK_S", 0.0)
    patch.setattr(children, "LOST_S", 0.2)
    order = children.Order(space_with(root, folder, None), "clean")
    order.space.events("clean").parent.mkdir(parents=True, exist_ok=True)
    return pools.PoolRun(order, PlaceSettings(pool="far"), 0.2)


def test_a_build_whose_stage_is_gone_says_so(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("RUNNING")
    run = placed_run(client, root, tmp_path, monkeypatch)
    assert until(run.poll) == 1
    assert run.words == "its run in the pool far gave no sign of life for 0 s"
    assert client.state.type.value == "CRASHED"
    assert children.Sign(run.order, "build").read() == children.STOP, "if it lives after all, it ends"


def test_a_paused_pool_is_one_sentence(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = placed_run(Client("SCHEDULED", paused=True), root, tmp_path, monkeypatch)
    with pytest.raises(
        BadInput, match=r"placement\.clean\.pool: the pool 'far' is paused; prefect work-pool resume far"
    ):
        until(run.poll)


def test_a_pool_whose_workers_are_busy_is_waited_for_and_a_run_that_has_not_begun_is_cancelled(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client("SCHEDULED")
    run = placed_run(client, root, tmp_path, monkeypatch)
    ends = time.monotonic() + 1.0
    while time.monotonic() < ends:
        assert run.poll() is None
        time.sleep(0.05)
    run.end()
    assert client.state.type.value == "CANCELLED"


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (
            {"pool": "moon"},
            "placement.clean.pool: Prefect has no work pool 'moon' (there are: far); make it with "
            "prefect work-pool create moon --type process",
        ),
        ({"pool": "far", "job": {"gpus": 8, "memry": "1Gi"}}, "the pool far has no job variable 'memry', only claim"),
        ({"slurm": []}, "placement.clean.slurm: this machine has no sbatch; start the build where Slurm takes jobs"),
        ({"slurm": [], "script": "gone.sbatch"}, "gone.sbatch is not there"),
    ],
)
def test_a_place_that_is_not_there_is_one_sentence_before_anything_starts(
    place: dict[str, Any], sentence: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.session import open_session

    monkeypatch.setattr(pools, "get_client", lambda **_: nullcontext(Client()))
    monkeypatch.setattr(slurm.shutil, "which", lambda _: "/bin/sbatch" if "script" in place else None)
    space = space_with(root, tmp_path, {"clean": place})
    with pytest.raises(BadInput, match=re.escape(sentence)), open_session(space.root, ("clean",)):
        raise AssertionError("a session was opened")
    with pytest.raises(AssertionError, match="opened"), open_session(space.root, ("acquire",)):
        raise AssertionError("what was not asked for was not looked at: opened")
