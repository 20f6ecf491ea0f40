import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlpm_guard.bundles import recipe
from mlpm_guard.encoders import embedded


def test_pinning_changes_the_one_line_and_no_other(tmp_path):
    adapter, code = tmp_path / "a.safetensors", tmp_path / "code.py"
    adapter.write_bytes(b"weights")
    before = 'FIRST = 1\nADAPTER_SHA256: str | None = None\n"""What it is."""\nADAPTER_SHA256_OTHER = 2\n'
    code.write_text(before)
    found = recipe.pin(adapter, code)
    assert found == hashlib.sha256(b"weights").hexdigest()
    assert code.read_text() == before.replace("= None", f'= "{found}"')
    recipe.pin(adapter, code)
    assert code.read_text() == before.replace("= None", f'= "{found}"')


def test_the_module_that_is_pinned_has_such_a_line():
    assert len(recipe._PIN.findall(Path(embedded.__file__).read_text(encoding="utf-8"))) == 1


@pytest.mark.parametrize(("keep", "steps"), [(False, recipe.STEPS), (True, recipe.STEPS[1:])])
def test_the_steps_run_in_order_on_the_data(monkeypatch, tmp_path, keep, steps):
    ran, pinned = [], []
    monkeypatch.setattr(sys, "argv", ["recipe.py", str(tmp_path), *(["--keep-adapter"] if keep else [])])
    monkeypatch.setattr(recipe, "pin", lambda adapter, code: pinned.append((adapter, str(code))))
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command) or SimpleNamespace(returncode=0))
    recipe.main()
    assert [command[1:] for command in ran] == [[str(recipe.HERE / step), str(tmp_path)] for step in steps]
    assert pinned == ([] if keep else [(embedded.ADAPTER, embedded.__file__)])
    assert all((recipe.HERE / step).is_file() for step in steps)


def test_the_reference_is_kept_by_the_card_and_every_step_says_what_it_took(monkeypatch, tmp_path, capsys):
    ran = []
    monkeypatch.setattr(sys, "argv", ["recipe.py", str(tmp_path), "--keep-adapter", "--reference", "plain"])
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command) or SimpleNamespace(returncode=0))
    recipe.main()
    assert [command[3:] for command in ran] == [[], [], ["--reference", "plain"]]
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(recipe.STEPS[1:])


def test_a_step_that_fails_ends_the_recipe(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(sys, "argv", ["recipe.py", str(tmp_path)])
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command) or SimpleNamespace(returncode=1))
    with pytest.raises(SystemExit, match=r"train_adapter\.py failed"):
        recipe.main()
    assert len(ran) == 1


def test_no_data_folder_is_said(monkeypatch):
    monkeypatch.delenv("MLPM_GUARD_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    with pytest.raises(SystemExit, match="no data folder"):
        recipe.main()
