"""What may not stand in the code: nothing that runs data, and no way to load it that could."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "tasks", "llm_core", "apps", "deployments", "rules", "docs", "benchmarks")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PICKLES = {"llm_core/parallel.py"}
"""Between this process and the children that it starts itself, over a pipe and a file without a name: whoever could
write there could as well write into the process. Nothing of it is ever kept or taken from elsewhere."""
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.load", "yaml.load_all",
    "yaml.full_load", "yaml.unsafe_load", "yaml.UnsafeLoader", "yaml.Loader", "yaml.FullLoader", "torch.save",
    "pd.read_pickle", "shutil.unpack_archive", "tempfile.mktemp", "ssl._create_unverified_context",
}  # fmt: skip
UNSAFE_ARGUMENTS = {"shell": True, "allow_pickle": True, "trust_remote_code": True, "verify": False}


def offences(code: str) -> list[str]:
    """What in a module's code is not allowed, with its line."""
    found = []
    for node in ast.walk(ast.parse(code)):
        said = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            said = [name for name in names if name.partition(".")[0] in UNSAFE_MODULES]
            if isinstance(node, ast.ImportFrom):
                said += [f"{node.module}.{a.name}" for a in node.names]
                said = [name for name in said if name in UNSAFE_ATTRIBUTES or name in UNSAFE_MODULES]
        elif isinstance(node, ast.Attribute):
            said = [text for text in [ast.unparse(node)] if text in UNSAFE_ATTRIBUTES]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            said = [called] if called in UNSAFE_CALLS else []
            given = {k.arg: k.value for k in node.keywords}
            if not called.startswith(("httpx.", "requests.", "urllib3.", "session.", "client.")):
                given.pop("verify", None)  # of a product's digests
            said += [f"{name}={ast.unparse(given[name])}" for name, bad in UNSAFE_ARGUMENTS.items()
                     if name in given and not (isinstance(given[name], ast.Constant) and given[name].value is not bad
                                               and given[name].value == (not bad))]  # fmt: skip
            if called.endswith("torch.load") and ast.unparse(given.get("weights_only", ast.Constant(False))) != "True":
                said.append("torch.load without weights_only=True")
            if called.endswith(".extractall"):
                said.append(called)
        found += [f"line {node.lineno}: {text}" for text in said]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_runs_data(path: Path) -> None:
    found = offences(path.read_text())
    if path.relative_to(ROOT).as_posix() in PICKLES:
        assert found, "no longer an exception"
        found = [text for text in found if not text.endswith(": pickle")]
    assert not found


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from pickle import loads", "import a, dill", "eval('1')", "exec(x)", "os.system('ls')",
     "subprocess.run('ls', shell=True)", "subprocess.run('ls', shell=flag)", "yaml.load(x)", "from yaml import load",
     "yaml.load(x, Loader=yaml.Loader)", "torch.load(p)", "torch.load(p, weights_only=False)", "torch.save(x, p)",
     "np.load(p, allow_pickle=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)", "archive.extractall(p)",
     "httpx.get(u, verify=False)"],
)  # fmt: skip
def test_the_check_finds_it(code: str) -> None:
    assert offences(code)


@pytest.mark.parametrize(
    "code",
    ["yaml.safe_load(x)", "torch.load(p, weights_only=True)", "subprocess.run(['ls'], shell=False)", "model.eval()",
     "re.compile(x)", "np.load(p, allow_pickle=False)"],
)  # fmt: skip
def test_and_nothing_else(code: str) -> None:
    assert not offences(code)


def test_problems_are_computed_without_running_them() -> None:
    from llm_core.data.sources.problems import value

    assert [value(e) for e in ("3 + 4", "3 - 40", "max(1, 9, 3)", "len('abc')", "' '.join('abc'[::-1])")] == [
        "7", "-37", "9", "3", "c b a",
    ]  # fmt: skip
    for hostile in (
        "__import__('os').system('ls')", "().__class__", "9**9**9", "'a' * 10**9", "max", "open('x')", "[x for x in y]",
        "max(1, key=len)", "lambda: 1", "'%s' % 1", "len(1)", "' '.join(1)", "'a' + 'b'", "'a'[1:2]", "-'a'", "max()",
        "f'{1}'", "(" * 150, "True", "1.5",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="no expression of a problem"):
            value(hostile)
