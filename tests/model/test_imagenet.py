"""ImageNet weights are fetched once, kept with a checksum, verified, and refused in one sentence."""

import functools
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file

from agl_core.config import WeightsConfig
from agl_core.errors import UserError
from agl_core.model import encodercache, hub
from agl_core.model.encodercache import cache_file, checksum, save
from agl_core.model.encoders import library_encoder, smp_encoders
from agl_core.model.imagenet import cached, load, obtain, weights
from tests.model.fakehub import COMMIT, fake_cache, publish, published, snapshot

REVISION = "3f2325ff978283d47aa6a1d6878ca20565622683"  # of resnet18, as segmentation-models-pytorch asks for it


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache, empty, and no network."""
    return fake_cache(tmp_path / "hub", monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> str:
    """Where the cache will be."""
    return str(tmp_path / "cache")


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_weights_are_kept_with_where_they_are_from_and_their_checksum(store: Path, cache: str, capsys) -> None:
    assert cached("resnet18", cache) is None
    publish(store, "resnet18")
    path = obtain(name := "resnet18", cache)
    assert path == cached(name, cache) == Path(cache) / "resnet18.imagenet.safetensors"
    state = load(name, cache)
    assert header(path) == {
        "format": "agl-encoder-1",
        "encoder": "resnet18",
        "source": f"smp-hub/resnet18.imagenet@{REVISION}",
        "commit": REVISION,
        "timm": encodercache.timm.__version__,
        "segmentation-models-pytorch": encodercache.smp_version(),
        "checksum": checksum(state),
    }
    assert all(torch.equal(value, state[key]) for key, value in published(name).items())
    assert list(Path(cache).iterdir()) == [path]
    assert f"resnet18: fetched {path.stat().st_size / 1e6:.1f} MB in " in capsys.readouterr().out


def test_timms_weights_say_which_commit_they_are(store: Path, cache: str) -> None:
    publish(store, "tu-resnet10t")
    found = header(obtain("tu-resnet10t", cache))
    assert (found["source"], found["commit"]) == ("timm/resnet10t.c3_in1k", COMMIT)


def test_what_is_there_is_kept_and_nothing_that_fetches_is_imported(
    store: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "resnet18")
    before = obtain("resnet18", cache).stat()
    monkeypatch.setitem(sys.modules, "agl_core.model.hub", None)
    assert obtain("resnet18", cache).stat() == before
    with pytest.raises(ImportError):
        obtain("resnet34", cache)


def test_fetching_leaves_random_numbers_and_the_environment_as_they_are(store: Path, cache: str) -> None:
    publish(store, "resnet18")
    before, environment = torch.get_rng_state(), dict(os.environ)
    obtain("resnet18", cache)
    assert torch.equal(torch.get_rng_state(), before)
    assert dict(os.environ) == environment


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def of_another(path: Path) -> None:
    save("resnet18", library_encoder("resnet18").state_dict(), "", str(path.parent))
    path.with_name("resnet18.imagenet.safetensors").rename(path)


def foreign(path: Path) -> None:
    save_file({"a": torch.zeros(3)}, path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (damage, "is damaged"),
        (cut, "not a readable safetensors file"),
        (of_another, "has the weights of 'resnet18' from smp-hub/resnet18"),
        (foreign, "is not of this project's cache"),
    ],
)
def test_what_is_not_as_it_was_written_is_refused_and_fetched_again(
    store: Path, cache: str, capsys, spoil: Callable[[Path], None], said: str
) -> None:
    publish(store, "tu-resnet10t")
    path = obtain("tu-resnet10t", cache)
    whole = path.read_bytes()
    spoil(path)
    with pytest.raises(
        UserError, match=rf"tu-resnet10t.*{said}.*: give `python launch.py weights --encoder tu-resnet10t"
    ):
        load("tu-resnet10t", cache)
    with pytest.raises(UserError, match=said):
        weights(WeightsConfig(weights_cache=cache, check=True))
    obtain("tu-resnet10t", cache)
    assert said in capsys.readouterr().out
    assert checksum(load("tu-resnet10t", cache)) == header(path)["checksum"]
    assert len(path.read_bytes()) == len(whole)


def test_weights_of_another_source_than_the_libraries_name_now_are_refused(
    store: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, "resnet18")
    obtain("resnet18", cache)
    monkeypatch.setitem(smp_encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"], "revision", "newer")
    with pytest.raises(UserError, match=r"take those of 'resnet18' from smp-hub/resnet18.imagenet@newer: give"):
        load("resnet18", cache)


def test_the_checksum_sees_every_bit_name_shape_and_type() -> None:
    state = {"a": torch.arange(6.0), "b": torch.tensor(3), "c": torch.zeros(0, 2)}
    others = [
        {**state, "a": torch.arange(6.0).view(2, 3)},
        {**state, "a": torch.arange(6.0).view(torch.int32)},
        {**state, "a": torch.tensor([0, 1, 2, 3, 4, 5.0000005])},
        {"a": state["a"], "d": state["b"], "c": state["c"]},
        {"a": state["a"], "b": state["b"]},
    ]
    assert len({checksum(other) for other in [state, *others]}) == 6
    assert checksum(dict(reversed(state.items()))) == checksum(state)


def test_many_that_write_at_once_leave_one_whole_file(cache: str) -> None:
    state = library_encoder("resnet18").state_dict()
    Path(cache).mkdir()
    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(lambda _: save("resnet18", state, "", cache), range(8)))
    assert set(written) == set(Path(cache).iterdir()) == {cache_file("resnet18", cache)}
    assert checksum(load("resnet18", cache)) == checksum(state)


def test_a_disk_that_fills_leaves_nothing(store: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    publish(store, "resnet18")
    monkeypatch.setattr(encodercache, "save_tensors", half)
    with pytest.raises(OSError, match="No space left"):
        obtain("resnet18", cache)
    assert list(Path(cache).iterdir()) == []


class Session:
    """A session of the hub's client that counts what it is asked for, and has an answer or an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.error = error

    def head(self, url: str, timeout: float) -> SimpleNamespace:
        assert timeout <= 5
        self.asked.append(url)
        if self.error is not None:
            raise self.error
        return SimpleNamespace(status_code=200)


def connected(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> Session:
    session = Session(error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_session", lambda: session)
    return session


def test_without_a_network_nothing_is_tried_but_one_question_for_all_encoders(
    store: Path, cache: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    session = connected(monkeypatch, ConnectionError("Name or service not known"))
    monkeypatch.setattr(smp_encoders, "hf_hub_download", None)
    publish(store, "tu-resnet10t")
    with pytest.raises(UserError, match="2 of 3 encoders' weights are not fetched: resnet18, resnet34"):
        weights(WeightsConfig("resnet18,tu-resnet10t,resnet34", cache))
    assert session.asked == ["https://huggingface.co"]
    assert [path.name for path in Path(cache).iterdir()] == ["tu-resnet10t.imagenet.safetensors"]
    said = capsys.readouterr().out
    assert "(https://huggingface.co does not answer: ConnectionError: Name or service not known): give `python" in said
    with pytest.raises(
        UserError, match=r"'resnet18' could not be fetched from smp-hub/resnet18.*on a machine with net"
    ):
        weights(WeightsConfig("resnet18", cache))


def test_what_the_hugging_face_cache_does_not_have_is_fetched_as_the_library_fetches(
    store: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "server", "resnet18")
    folder = snapshot(tmp_path / "server", "resnet18")
    session = connected(monkeypatch)
    fetched: list[tuple[str, str]] = []

    def download(repo: str, filename: str, revision: str) -> str:
        assert not constants.HF_HUB_OFFLINE
        fetched.append((repo, revision))
        return str(folder / filename)

    monkeypatch.setattr(smp_encoders, "hf_hub_download", download)
    obtain("resnet18", cache)
    assert session.asked
    assert set(fetched) == {("smp-hub/resnet18.imagenet", REVISION)}
    state = load("resnet18", cache)
    assert all(torch.equal(value, state[key]) for key, value in published("resnet18").items())


def test_a_download_that_breaks_off_is_refused_and_a_defect_is_not_hidden(
    store: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected(monkeypatch)

    def failing(error: Exception) -> Callable[..., str]:
        def download(*_: object, **__: object) -> str:
            raise error

        return download

    monkeypatch.setattr(smp_encoders, "hf_hub_download", failing(ConnectionResetError("reset by peer\nand more")))
    with pytest.raises(UserError, match=r"could not be fetched from .* \(ConnectionResetError: reset by peer\)"):
        obtain("resnet18", cache)
    for error in (OSError(28, "No space left on device"), ZeroDivisionError("a defect")):
        monkeypatch.setattr(smp_encoders, "hf_hub_download", failing(error))
        with pytest.raises(type(error), match=str(error.args[-1])):
            obtain("resnet18", cache)


class Evil:
    """A pickle that runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_pickle_files_give_their_tensors_and_run_nothing(
    store: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = snapshot(store, "tu-resnet10t") / "pytorch_model.bin"
    torch.save({**published("tu-resnet10t"), "more": Evil(tmp_path / "trace")}, path)
    with pytest.raises(
        UserError, match=r"'tu-resnet10t' could not be fetched .*holds more than tensors and is not read"
    ):
        obtain("tu-resnet10t", cache)
    torch.save(published("tu-resnet10t"), path)
    obtain("tu-resnet10t", cache)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"from https://github.com/.*pth \(HF_HUB_OFFLINE is set\)"):
        obtain("tu-legacy_seresnet18", cache)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with (tmp_path / "hub" / "checkpoints" / "seresnet18-4bb0ce65.pth").open("wb") as file:
        pickle.dump(Evil(tmp_path / "trace"), file)
    with pytest.raises(UserError, match="holds more than tensors"):
        obtain("tu-legacy_seresnet18", cache)
    torch.save(published("tu-legacy_seresnet18"), tmp_path / "hub" / "checkpoints" / "seresnet18-4bb0ce65.pth")
    obtain("tu-legacy_seresnet18", cache)
    assert not (tmp_path / "trace").exists()


def test_nothing_is_unpickled_even_where_a_library_asks_for_it(
    store: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(Evil(tmp_path / "trace"), tmp_path / "weights.pth")
    reckless = functools.partial(torch.load, tmp_path / "weights.pth", weights_only=False)
    monkeypatch.setattr(hub, "library_encoder", lambda *_, **__: reckless())
    publish(store, "resnet18")
    with pytest.raises(UserError, match="holds more than tensors"):
        obtain("resnet18", cache)
    assert not (tmp_path / "trace").exists()


def test_a_damaged_file_of_the_hugging_face_cache_is_named(store: Path, cache: str) -> None:
    publish(store, "resnet18")
    cut(path := snapshot(store, "resnet18") / "model.safetensors")
    with pytest.raises(UserError, match=rf"{path} is damaged, remove it"):
        obtain("resnet18", cache)


def test_the_verb_fetches_lists_and_verifies(store: Path, cache: str, capsys) -> None:
    def said(config: WeightsConfig) -> str:
        weights(config)
        return capsys.readouterr().out

    assert said(WeightsConfig(weights_cache=cache)).startswith(
        f"{cache} has no weights; to fetch some: python launch.py"
    )
    assert said(WeightsConfig(weights_cache=cache, check=True)) == f"{cache} has no weights\n"
    publish(store, "resnet18")
    publish(store, "tu-resnet10t")
    with pytest.raises(UserError, match="2 of 3 encoders' weights are not fetched: none-such, dpn92"):
        weights(WeightsConfig("none-such, resnet18,dpn92,resnet18", cache))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("none-such: not fetched: unknown encoder 'none-such': choose one of ")
    assert [line.split(":")[0] for line in lines[2:]] == ["resnet18", "dpn92"]
    lines = said(WeightsConfig("resnet18,tu-resnet10t", cache)).splitlines()
    assert lines[0] == f"resnet18: already there, 44.8 MB, {cache}/resnet18.imagenet.safetensors"
    assert lines[-1].startswith("tu-resnet10t: fetched 19.7 MB in ")
    lines = said(WeightsConfig(weights_cache=cache)).splitlines()
    assert [line.split() for line in lines] == [
        ["encoder", "MB", "from", "file"],
        ["resnet18", "44.8", f"smp-hub/resnet18.imagenet@{REVISION}", f"{cache}/resnet18.imagenet.safetensors"],
        ["tu-resnet10t", "19.7", f"timm/resnet10t.c3_in1k@{COMMIT}", f"{cache}/tu-resnet10t.imagenet.safetensors"],
    ]
    assert said(WeightsConfig(weights_cache=cache, check=True)).count(": right, ") == 2
    damage(cache_file("resnet18", cache))
    with pytest.raises(UserError, match="2 of 3 encoders' weights are not right: resnet18, resnet34"):
        weights(WeightsConfig("resnet18,tu-resnet10t,resnet34", cache, check=True))
    shown = capsys.readouterr().out
    assert "resnet18.imagenet.safetensors is damaged (its checksum is wrong): give `python launch.py weights" in shown
    assert "resnet34.imagenet.safetensors is missing: give `python launch.py weights --encoder resnet34 " in shown
    with pytest.raises(UserError, match="1 of 2 encoders' weights are not right: resnet18"):
        weights(WeightsConfig(weights_cache=cache, check=True))
