"""The turns of a conversation, and the arguments of its next task."""

from __future__ import annotations

from llmosd.cli.conversation import Conversation


def test_a_program_with_messages_gets_the_whole_conversation():
    conversation = Conversation(remembers=True, named={"system": "Be brief."})
    conversation.answered("Hello", "Hi.")
    positional, named = conversation.ask("And now?")
    assert positional == ()
    assert named == {
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "And now?"},
        ],
    }


def test_any_other_program_gets_the_text_alone():
    conversation = Conversation(remembers=False, named={"max_tokens": "5"})
    conversation.answered("Hello", "Hi.")
    assert conversation.ask("And now?") == (("And now?",), {"max_tokens": "5"})


def test_a_text_without_a_reply_is_no_turn():
    conversation = Conversation(remembers=True, named={})
    conversation.ask("interrupted before the first token")
    conversation.answered("interrupted before the first token", "")
    assert conversation.turns == []


def test_a_forgotten_conversation_starts_over_with_the_same_options():
    conversation = Conversation(remembers=True, named={"seed": "1"})
    conversation.answered("Hello", "Hi.")
    conversation.forget()
    assert conversation.ask("Again")[1] == {"seed": "1", "messages": [{"role": "user", "content": "Again"}]}
