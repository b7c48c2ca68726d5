"""Modules that run at their first use."""

import importlib
import inspect
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.engine.deferred_modules import DeferredParts, is_deferred


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `later_on` with a submodule, which is forgotten afterwards."""
    folder = tmp_path / "later_on"
    folder.mkdir()
    (folder / "__init__.py").write_text("from later_on.inner import deep\nvalue = deep + 1\n")
    (folder / "inner.py").write_text("import sys\ndeep = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finders = list(sys.meta_path)
    yield folder
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.startswith("later_on")]:
        del sys.modules[name]


def test_a_deferred_module_runs_when_it_is_asked_for_a_name(package: Path) -> None:
    with DeferredParts("later_on", {"later_on"}):
        module = importlib.import_module("later_on")
    assert is_deferred(module) and "later_on.inner" not in sys.modules

    assert module.value == 2

    assert not is_deferred(module)
    assert type(module) is type(sys)
    assert module is sys.modules["later_on"] is importlib.import_module("later_on")


def test_import_and_inspect_look_at_it_and_leave_it_deferred(package: Path) -> None:
    with DeferredParts("later_on", {"later_on"}):
        module = importlib.import_module("later_on")

    assert importlib.import_module("later_on") is module
    assert module.__file__ == str(package / "__init__.py")
    inspect.getmodule(test_import_and_inspect_look_at_it_and_leave_it_deferred)

    assert is_deferred(module)


def test_importing_a_submodule_runs_its_package_first(package: Path) -> None:
    with DeferredParts("later_on", {"later_on"}):
        module = importlib.import_module("later_on")

    inner = importlib.import_module("later_on.inner")

    assert not is_deferred(module)
    assert (module.inner, module.value) == (inner, 2)


def test_all_parts_run_in_the_order_of_their_imports_when_another_module_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "later_on_whole").mkdir()
    folder = tmp_path / "later_on_whole"
    (folder / "__init__.py").write_text("order = []\nfrom later_on_whole import b, a, c\n")
    for name in "abcd":
        text = f"import later_on_whole\nlater_on_whole.order.append({name!r})\n"
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with DeferredParts("later_on_whole", {"later_on_whole.a", "later_on_whole.b"}):
        whole = importlib.import_module("later_on_whole")
    assert whole.order == ["c"]

    importlib.import_module("later_on_whole.d")

    assert whole.order == ["c", "b", "a", "d"]


def test_a_name_that_it_does_not_have_is_an_attribute_error_before_and_after(package: Path) -> None:
    with DeferredParts("later_on", {"later_on"}):
        module = importlib.import_module("later_on")

    for _ in range(2):
        with pytest.raises(AttributeError, match="module 'later_on' has no attribute 'nothing'"):
            _ = module.nothing


def test_a_module_that_failed_is_run_again(package: Path) -> None:
    (package / "inner.py").write_text("raise OSError('not now')\n")
    with DeferredParts("later_on", {"later_on"}):
        module = importlib.import_module("later_on")
    with pytest.raises(OSError, match="not now"):
        _ = module.value
    importlib.invalidate_caches()
    (package / "inner.py").write_text("deep = 41  # longer, so that no cache is taken for it\n")

    assert module.value == 42


def test_who_comes_second_waits_for_the_whole_module(package: Path) -> None:
    (package / "inner.py").write_text(
        "import later_on_test\nlater_on_test.begun.set()\nlater_on_test.go.wait(10)\ndeep = 1\n"
    )
    meeting = type(sys)("later_on_test")
    meeting.begun, meeting.go = threading.Event(), threading.Event()
    sys.modules["later_on_test"] = meeting
    with DeferredParts("later_on", {"later_on"}):
        module = importlib.import_module("later_on")
    seen: list[int] = []
    first, second = (threading.Thread(target=lambda: seen.append(module.value)) for _ in range(2))
    first.start()
    assert meeting.begun.wait(10)
    second.start()
    second.join(0.05)
    assert second.is_alive() and not seen

    meeting.go.set()
    first.join(10)
    second.join(10)

    assert seen == [2, 2]


def test_other_modules_and_later_imports_are_not_deferred(package: Path) -> None:
    with DeferredParts("later_on", {"something_else"}):
        module = importlib.import_module("later_on")
    assert not is_deferred(module)
