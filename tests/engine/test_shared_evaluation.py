"""Several processes evaluate to what one does, to the last bit; an error of one is an error of all."""

import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import TOWERS, Recorder, evaluated, scenes, tiny_bundle

from groundtune.data.formats.detect import load_splits
from groundtune.data.sample import Dataset
from groundtune.data.scenes import write_captioned_scenes
from groundtune.engine.distributed import from_main, gather
from groundtune.engine.evaluate import Evaluation
from groundtune.engine.optim import freeze
from groundtune.errors import DataError, GroundtuneError
from groundtune.model.bundle import ModelBundle
from groundtune.predict.features import FeatureCache

Work = Callable[[int], Any]


def _process(rank: int, count: int, port: int, work: Work, folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo",
            f"tcp://127.0.0.1:{port}",
            world_size=count,
            rank=rank,
            timeout=torch.distributed.default_pg_timeout,
        )
        torch.save(work(rank), folder / f"{rank}.pt")
        torch.distributed.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise


def in_processes(count: int, work: Work, folder: Path) -> list[Any]:
    """What `work` gives in each of so many processes; forked, so that nothing has to be imported
    again.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir()
    context = torch.multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_process, args=(rank, count, port, work, folder)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
        process.kill()
    failed = "\n".join(file.read_text() for file in folder.glob("*.txt"))
    assert [process.exitcode for process in processes] == [0] * count, (
        failed or "the processes wait for each other"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


@pytest.fixture(autouse=True)
def one_thread():
    """The last bits depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_splits(scenes(tmp_path_factory.mktemp("classes"), train=1, valid=7))["valid"]


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("captions")
    write_captioned_scenes(folder, train=1, valid=7, size=64, seed=0)
    return load_splits(folder)["valid"]


@pytest.fixture(scope="module")
def bundle(tokenizer) -> ModelBundle:
    return tiny_bundle(tokenizer)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_processes_evaluate_to_the_same_bits(request, tmp_path: Path, bundle, kind: str, count: int) -> None:
    """Seven images by two: shares of 4 and 3 or of 3, 2 and 2. By four: one process of three has
    none.
    """
    data = request.getfixturevalue(kind)

    def work(rank: int) -> list[Evaluation]:
        return [evaluated(bundle, data, batch_size=size) for size in (2, 4)]

    bundle.network.forget_phrases()  # the processes are copies of this one
    main, *others = in_processes(count, work, tmp_path / "processes")
    alone = work(0)
    for expected, found in zip(alone, main, strict=True):
        assert len(expected.predictions) > 10
        assert found == expected
    for other in others:
        for expected, found in zip(alone, other, strict=True):
            assert found == Evaluation(expected.metrics, expected.per_class, [])


def test_phrases_are_met_in_the_company_of_their_batch_only(bundle, captions) -> None:
    """Those that another batch or another process met earlier are encoded again: seen here by
    weights that change.
    """
    evaluated(bundle, captions)
    words = bundle.network.language_model.bert.embeddings.word_embeddings.weight
    before = words.detach().clone()
    with torch.no_grad():
        words.add_(torch.randn_like(words))
    changed = evaluated(bundle, captions)
    bundle.network.forget_phrases()
    assert changed == evaluated(bundle, captions)
    with torch.no_grad():
        words.copy_(before)
    assert changed != evaluated(bundle, captions)


def test_each_image_is_computed_once_and_its_features_are_kept(tmp_path: Path, tokenizer, classes) -> None:
    bundle = tiny_bundle(tokenizer)
    freeze(bundle.network, TOWERS)

    def work(rank: int) -> tuple[list[Evaluation], list[int], list[Any]]:
        cache, watcher, computed = FeatureCache(bundle.network), Recorder(), []
        extract = bundle.network.extract_features
        bundle.network.extract_features = lambda *given: computed.append(len(given[0])) or extract(*given)
        found = [evaluated(bundle, classes, batch_size=2, features=cache, progress=watcher) for _ in range(2)]
        return found, computed, [done for _, done in watcher.events]

    one, _, _ = work(0)
    (main, computed, told), (_, also_computed, _) = in_processes(2, work, tmp_path / "processes")
    assert (len(computed), len(also_computed)) == (4, 3) and main == one
    assert told == [4, 7] * 2


@pytest.mark.parametrize("broken", [0, 2])
def test_an_image_that_one_process_cannot_read(tmp_path: Path, tokenizer, broken: int) -> None:
    """An error of all, or told to all and counted as one without detections."""
    data = load_splits(scenes(tmp_path / "data", train=1, valid=4))["valid"]
    bundle = tiny_bundle(tokenizer)
    whole = evaluated(bundle, data, batch_size=2)
    lost = data.samples[broken]
    lost.image_path.write_bytes(b"no image")

    def work(rank: int) -> tuple[str, Evaluation]:
        with pytest.raises(DataError) as error:
            evaluated(bundle, data, batch_size=2)
        return str(error.value), evaluated(bundle, data, batch_size=2, skip_unreadable=True)

    (told, main), (also_told, other) = in_processes(2, work, tmp_path / "processes")
    assert told == also_told and lost.image_path.name in told
    assert main == work(0)[1] and main.metrics == other.metrics
    assert main.unreadable == other.unreadable and list(main.unreadable) == [str(lost.image_path)]
    kept = {sample.image_id for sample in data.samples} - {lost.image_id}
    assert {prediction["image_id"] for prediction in main.predictions} == kept
    assert len(main.predictions) == len(whole.predictions) * 3 // 4


def test_unreadable_images_with_captions_count_as_phrases_that_are_not_found(tmp_path: Path, bundle) -> None:
    """Without any answer no phrase is found, and none is said where there is nothing."""
    write_captioned_scenes(tmp_path / "data", train=1, valid=2, size=64, seed=0)
    data = load_splits(tmp_path / "data")["valid"]
    for sample in data.samples:
        sample.image_path.write_bytes(b"no image")
    found = evaluated(bundle, data, skip_unreadable=True)
    assert found.predictions == [] and len(found.unreadable) == 2
    assert found.metrics["recall@1"] == found.metrics["recall@10"] == found.metrics["T-acc"] == 0.0


def test_what_one_finds_and_what_one_fails_on(tmp_path: Path) -> None:
    def fails(rank: int, where: int) -> int:
        if rank == where:
            raise DataError(f"of {where}")
        return rank

    def work(rank: int) -> list[Any]:
        seen: list[Any] = [gather(lambda: rank * 10), from_main(lambda: f"of {rank}")]
        for where in range(3):
            with pytest.raises(DataError) as error:
                gather(lambda where=where: fails(rank, where))
            seen.append(str(error.value))
        with pytest.raises(GroundtuneError) as error:
            from_main(lambda: fails(rank, 0))
        return [*seen, str(error.value)]

    told = ["of 0", "of 1", "of 2", "of 0"]
    main, *others = in_processes(3, work, tmp_path / "processes")
    assert main == [[0, 10, 20], "of 0", *told] and others == [[[], "of 0", *told]] * 2
