"""A model that a script holds, and the plugin that is switched under it."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plugin_support import Journal, WordPlugin, word_plugin
from rm_abstract.core.config import Config, Device
from rm_abstract.core.controller import DeviceFlowController, LoadedModel
from rm_abstract.core.errors import BadInput
from rm_abstract.core.plugin import Plugin
from rm_abstract.core.registry import get_registry
from rm_abstract.core.session import FinishReason, GenerationRequest, Session, generate
from scripted_session import ScriptedSession


class Speaking(WordPlugin):
    """Gives sessions that say the prompt in capitals."""

    sessions: list[ScriptedSession]

    def create_session(self, resource: Any) -> Session:
        session = ScriptedSession()
        type(self).sessions.append(session)
        return session


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def plugins(journal: Journal) -> Iterator[dict[str, type[Speaking]]]:
    registry = get_registry()
    made: dict[str, Any] = {word: word_plugin(word, journal, base=Speaking) for word in ("first", "second")}
    for each in made.values():
        each.sessions = []
        registry.register(each)
    yield made
    for word in made:
        registry.unregister(word, force=True)


@pytest.fixture
def controller(plugins: dict[str, type[Plugin]], tmp_path: Path) -> Iterator[DeviceFlowController]:
    with DeviceFlowController(Config(Device("first"), cache_dir=tmp_path / "cache")) as controller:
        controller.start()
        yield controller


@pytest.fixture
def loaded(controller: DeviceFlowController, tmp_path: Path) -> LoadedModel:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return controller.load(model)


def say(loaded: LoadedModel, text: str) -> str:
    with loaded.use() as session:
        tokens, finish = generate(session, GenerationRequest(list(text.encode()), 50))
        assert finish is FinishReason.STOP
        return session.tokenizer.decode(tokens)


def test_a_generation_ends_on_the_plugin_that_it_began_on(
    controller: DeviceFlowController, loaded: LoadedModel, journal: Journal, plugins: dict[str, type[Speaking]]
) -> None:
    (session,) = plugins["first"].sessions
    session.pace.permits = threading.Semaphore(1)
    said: list[str] = []
    began = threading.Event()

    def run() -> None:
        with loaded.use() as used:
            assert used is session
            began.set()
            tokens, _ = generate(used, GenerationRequest(list(b"sea"), 50))
            said.append(used.tokenizer.decode(tokens))

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(60)
    controller.manager.switch_plugin("second")
    assert journal.count("first cleanup") == 0, "a plugin that generates is not cleaned up"
    assert say(loaded, "wind") == "WIND"
    session.pace.permits.release(10)
    thread.join(60)
    assert said == ["SEA"]
    assert len(plugins["second"].sessions) == 1
    assert journal.count("first cleanup") == 1


def test_a_model_that_nobody_uses_keeps_no_plugin(
    controller: DeviceFlowController, loaded: LoadedModel, journal: Journal
) -> None:
    controller.manager.switch_plugin("second", wait=True)
    assert journal.count("first cleanup") == 1
    assert say(loaded, "wind") == "WIND"


def test_after_the_shutdown_a_model_says_what_to_do(controller: DeviceFlowController, loaded: LoadedModel) -> None:
    controller.shutdown()
    with pytest.raises(BadInput, match="was shut down since; load it again with from_pretrained"), loaded.use():
        pass
