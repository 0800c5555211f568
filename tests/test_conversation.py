"""Conversations: the template's text, what a turn reads, what is kept, what is saved, a context that fills up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcli.conversation import Conversation
from llmcli.errors import InputError
from llmcli.generation.completions import Completion, Policy, Session
from llmcli.generation.prefix import Remembering
from llmcli.generation.speculation import Draft, Lookup, Speculating
from llmcli.loading import load
from tests.marks import kernels_only
from tests.tiny import write_tokenizer


def talk(path: Path | str, context: int = 64, **settings: Any) -> Conversation:
    session = Session(load(path), Policy(context))
    return Conversation(session, {"max_tokens": 5, "seed": 0, "stop": [], "temperature": 0.0, **settings})


def answer(conversation: Conversation, text: str) -> str:
    return "".join(conversation.answer(text, lambda: False))


def test_an_answer_is_what_generate_gives_to_the_templates_text(chatty: Path) -> None:
    conversation = talk(chatty, temperature=0.9, seed=7)
    conversation.system("be")
    first, second = answer(conversation, "sea"), answer(conversation, "ship")
    assert conversation.messages == [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "sea"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "ship"},
        {"role": "assistant", "content": second},
    ]
    for prompt, seed, expected in (("[s]be[u]sea[a]", 8, first), (f"[s]be[u]sea[a]{first}[u]ship[a]", 10, second)):
        session, completion = Session(load(chatty), Policy(64)), Completion()
        for event in session.events([session.request(prompt, {**conversation.settings, "seed": seed})]):
            completion.add(event)
        assert completion.text == expected


def test_a_turn_reads_only_what_is_new() -> None:
    conversation = talk("default", context=256, max_tokens=20)
    reader, tokenizer = conversation.session.reader, conversation.session.loaded.tokenizer
    assert isinstance(reader, Remembering)
    first = answer(conversation, "Once upon a time")
    assert reader.reused == 0
    answer(conversation, "and then")
    # All but the token that was chosen last, and not read.
    assert reader.reused == len(tokenizer.encode("Once upon a time" + first)) - 1


@kernels_only
@pytest.mark.parametrize("drafted", [False, True])
def test_guesses_change_no_answer_and_nothing_is_read_twice(chatty: Path, drafted: bool) -> None:
    plain, ahead = talk(chatty, max_tokens=9), talk(chatty, max_tokens=9)
    assert isinstance(ahead.memory, Remembering)
    loaded, counts = ahead.session.loaded, []
    guesser = Draft(loaded.model, loaded.tokenizer.vocab_size, 64, "cpu")
    ahead.session.reader = Speculating(ahead.memory, (lambda: guesser) if drafted else Lookup, 4)
    for text in ("sea sea sea sea", "no sea sea sea", "ship"):
        assert answer(plain, text) == answer(ahead, text)
        assert plain.memory is not None
        assert plain.memory.ids == ahead.memory.ids
        assert plain.memory.reused == ahead.memory.reused
        counts.append(ahead.session.reader.details()["completion_tokens_details"]["accepted_prediction_tokens"])
    assert not drafted or min(counts) > 3


def test_an_answer_that_must_match(chatty: Path) -> None:
    conversation = talk(chatty)
    conversation.set("regex", "[0]")
    assert (answer(conversation, "sea"), conversation.matches) == ("0", True)
    conversation.set("json_schema", "null")
    conversation.set("regex", "[a-c]{9}d")
    answer(conversation, "sea")
    assert conversation.matches is False
    with pytest.raises(InputError, match="got both"):
        conversation.set("json_schema", "{}")
    conversation.set("regex", "null")
    conversation.set("json_schema", '{"const": 7}')
    assert answer(conversation, "sea") == "7"
    assert conversation.document()["settings"]["json_schema"] == {"const": 7}


def test_without_a_template_the_text_goes_on(tiny_gpt2: Path) -> None:
    conversation = talk(tiny_gpt2)
    assert conversation.template is None
    first = answer(conversation, "The sea")
    second = answer(conversation, "and")
    session, completion = Session(load(tiny_gpt2), Policy(64)), Completion()
    for event in session.events([session.request(f"The sea{first}\nand", conversation.settings)]):
        completion.add(event)
    assert completion.text == second


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(chatty: Path) -> None:
    conversation = talk(chatty, max_tokens=40)
    whole = answer(conversation, "sea")
    conversation.reset()
    calls = iter([False, False, True])
    cut = "".join(conversation.answer("sea", lambda: next(calls)))
    assert whole.startswith(cut)
    assert cut != whole
    assert conversation.messages[-1] == {"role": "assistant", "content": cut}
    pieces = conversation.answer("more", lambda: False)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2
    assert answer(conversation, "x")


def test_the_oldest_messages_make_room(chatty: Path) -> None:
    conversation = talk(chatty, context=40)
    conversation.system("be")
    for n in range(8):
        answer(conversation, f"sea {n}")
    assert conversation.unread > 0
    assert conversation.unread % 2 == 0
    assert len(conversation.messages) == 17
    with pytest.raises(InputError, match="shorten"):
        answer(conversation, "sea " * 40)
    assert len(conversation.messages) == 17


def test_what_the_template_refuses_is_not_kept(chatty: Path) -> None:
    conversation = talk(chatty)
    with pytest.raises(InputError, match="not that"):
        answer(conversation, "no")
    assert conversation.messages == []


def test_a_saved_conversation_goes_on_alike(chatty: Path, tiny_gpt2: Path) -> None:
    conversation = talk(chatty, temperature=0.7)
    conversation.system("be")
    answer(conversation, "sea")
    saved = json.loads(json.dumps(conversation.document()))
    other = talk(chatty)
    assert other.load(saved)
    assert other.settings == conversation.settings
    assert answer(other, "ship") == answer(conversation, "ship")
    assert other.load(saved, {"temperature": 0.1})
    assert other.settings["temperature"] == 0.1
    assert not other.load({**saved, "model_sha256": "another"})


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "llmcli/chat/2"},
        {"messages": None},
        {"messages": [{"role": "root", "content": "x"}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"messages": ["x"]},
        {"settings": {"num_samples": 2}},
        {"settings": {"temperature": -1}},
        {"settings": {"max_tokens": None}},
        {"settings": []},
    ],
)
def test_what_is_no_conversation_is_refused(chatty: Path, change: dict[str, Any]) -> None:
    conversation = talk(chatty)
    saved = conversation.document()
    for document in ({**saved, **change}, [], None):
        with pytest.raises(InputError):
            conversation.load(document)
    assert conversation.document() == saved


def test_settings_change_or_stay(chatty: Path) -> None:
    conversation = talk(chatty)
    conversation.set("temperature", "0.5")
    conversation.set("stop", "end")
    conversation.set("stop", '["a", "b"]')
    assert conversation.settings["temperature"] == 0.5
    assert conversation.settings["stop"] == ["a", "b"]
    before = dict(conversation.settings)
    for name, value in (
        ("temperature", "hot"),
        ("max_tokens", "0"),
        ("max_tokens", "null"),
        ("logprobs", "1"),
        ("x", "1"),
    ):
        with pytest.raises(InputError):
            conversation.set(name, value)
    assert conversation.settings == before


def test_a_recurrent_model_chats_without_a_cache(tmp_path: Path) -> None:
    from llmcli.checkpoints import safetensors
    from llmcli.models.lstm import LSTM, LSTMConfig

    network = LSTM(LSTMConfig(vocab_size=320, n_embd=16, n_layer=1)).initialize()
    (tmp_path / "config.json").write_text(json.dumps(network.config.describe()))
    safetensors.save(tmp_path / "model.safetensors", network.checkpoint())
    write_tokenizer(tmp_path)
    conversation = talk(tmp_path)
    assert conversation.session.reader is None
    answer(conversation, "sea")
    answer(conversation, "ship")
